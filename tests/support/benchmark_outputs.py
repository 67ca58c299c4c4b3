"""What benchmarks print, cut down by hand to what matters, and what is to be read from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Excerpt:
    """One output.

    Args:
        preset: that it belongs to.
        output: what was printed.
        values: what is read, in base units, by name; the objective first, unless the wall time is compared.
        form: which of the tool's forms it is; empty for the usual one.
        command: what printed it.
    """

    preset: str
    output: str
    values: Mapping[str, float]
    form: str = ""
    command: str = "./bench.sh"

    @property
    def name(self) -> str:
        return f"{self.preset} {self.form}".rstrip()


SCHBENCH = """\
Wakeup Latencies percentiles (usec) runtime 10 (s) (73209 total samples)
\t  50.0th: 15         (20101 samples)
\t* 99.0th: 2900       (6500 samples)
\t  99.9th: 3996       (600 samples)
\t  min=1, max=15003
Request Latencies percentiles (usec) runtime 10 (s) (73210 total samples)
\t* 99.0th: 23900      (6500 samples)
current rps: 7401.10
Wakeup Latencies percentiles (usec) runtime 20 (s) (146347 total samples)
\t  50.0th: 16         (41202 samples)
\t  90.0th: 143        (57173 samples)
\t* 99.0th: 3060       (13036 samples)
\t  99.9th: 3996       (1319 samples)
\t  min=1, max=18437
Request Latencies percentiles (usec) runtime 20 (s) (146489 total samples)
\t  50.0th: 9168       (45298 samples)
\t  90.0th: 11056      (57303 samples)
\t* 99.0th: 24288      (13117 samples)
\t  99.9th: 37952      (1315 samples)
\t  min=4790, max=87041
RPS percentiles (requests) runtime 20 (s) (21 total samples)
\t  20.0th: 7032       (5 samples)
\t* 50.0th: 7384       (8 samples)
\t  90.0th: 7656       (6 samples)
\t  min=6707, max=7706
average rps: 7324.45
"""

OLD_SCHBENCH = """\
Latency percentiles (usec)
\t50.0000th: 22
\t*99.0000th: 2132
\t99.5000th: 6296
\tmin=0, max=25313
"""

CYCLICTEST = """\
# /dev/cpu_dma_latency set to 0us
T: 0 (11739) P: 0 I:1000 C:    500 Min:     27 Act:   81 Avg:   94 Max:    5325
T: 1 (11740) P: 0 I:1500 C:    342 Min:     69 Act:   82 Avg:  151 Max:    3207
"""

CYCLICTEST_HISTOGRAM = """\
# Histogram
000000 000000\t000000
# Total: 000000000 000000000
# Min Latencies: 00064 00045
# Avg Latencies: 00857 00093
# Max Latencies: 17187 01716
# Histogram Overflows: 00179 00300
"""

HACKBENCH = """\
Running in process mode with 2 groups using 40 file descriptors each (== 80 tasks)
Each sender will pass 50 messages of 100 bytes
Time: 0.093
"""

PERF_BENCH = """\
# Running 'sched/messaging' benchmark:
# 20 sender and receiver processes per group
# 10 groups == 400 processes run

     Total time: 0.308 [sec]
"""

STRESS_NG = """\
stress-ng: info:  [11979] dispatching hogs: 1 cpu, 1 switch
stress-ng: metrc: [11979] stressor       bogo ops real time  usr time  sys time   bogo ops/s     bogo ops/s
stress-ng: metrc: [11979]                           (secs)    (secs)    (secs)   (real time) (usr+sys time)
stress-ng: metrc: [11979] cpu                 800      1.00      0.49      0.00       800.00        1582.30
stress-ng: metrc: [11979] switch            90079      1.00      0.04      0.41     90000.00      200957.50
stress-ng: metrc: [11979] miscellaneous metrics:
stress-ng: metrc: [11979] switch             11096.52 nanosecs per context switch (pipe method)
stress-ng: info:  [11979] successful run completed in 1.01s
"""

SYSBENCH = """\
sysbench 1.0.20 (using system LuaJIT 2.1.0-beta3)

CPU speed:
    events per second:  4555.95

General statistics:
    total time:                          1.0033s
    total number of events:              4574

Latency (ms):
         min:                                    0.22
         avg:                                    0.44
         max:                                   60.31
         95th percentile:                        0.42
         sum:                                 1997.31
"""

PGBENCH = """\
pgbench (15.18 (Debian 15.18-0+deb12u1))
progress: 1.0 s, 715.9 tps, lat 2.768 ms stddev 1.887, 0 failed
number of transactions actually processed: 1457
number of failed transactions: 0 (0.000%)
latency average = 2.738 ms
latency stddev = 1.918 ms
initial connection time = 7.712 ms
tps = 729.872891 (without initial connection time)
"""

PGBENCH_RATE = """\
number of transactions actually processed: 102
number of transactions above the 20.0 ms latency limit: 0/102 (0.000%)
latency average = 3.561 ms
latency stddev = 2.061 ms
rate limit schedule lag: avg 0.113 (max 1.813) ms
tps = 102.308460 (without initial connection time)
"""

REDIS = """\
====== SET ======
Summary:
  throughput summary: 40000.00 requests per second
  latency summary (msec):
          avg       min       p50       p95       p99       max
        0.570     0.056     0.500     0.831     1.000     2.055
====== GET ======
Summary:
  throughput summary: 90000.00 requests per second
  latency summary (msec):
          avg       min       p50       p95       p99       max
        0.610     0.168     0.500     0.919     4.000     5.215
"""

REDIS_QUIET = (
    "SET: rps=0.0 (overall: 0.0) avg_msec=-nan (overall: -nan)\r          \rSET: 40000.00 requests per second, "
    "p50=0.500 msec\nGET: rps=0.0 (overall: -nan)\r   \rGET: 90000.00 requests per second, p50=0.500 msec\n"
)

REDIS_CSV = """\
"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
"SET","40000.00","0.570","0.056","0.500","0.831","1.000","2.055"
"GET","90000.00","0.647","0.088","0.500","1.055","4.000","2.303"
"""

MEMTIER = """\
ALL STATS
Type     Ops/sec     Hits/sec   Misses/sec    Avg. Latency     p50 Latency     p99 Latency   p99.9 Latency       KB/sec
----------------------------------------------------------------------------------------------------------------------
Sets     8763.43          ---          ---         1.75666         1.47100         6.71900        12.99100       597.92
Gets    87538.04         0.00     87538.04         1.75173         1.47100         6.71900        12.15900      2213.18
Waits       0.00          ---          ---             ---             ---             ---             ---          ---
Totals  96301.47         0.00     87538.04         1.75218         1.47100         6.71900        12.22300      2811.10
"""

WRK = """\
Running 1s test @ http://127.0.0.1:8399/
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   980.00us    3.24ms  20.98ms   80.70%
    Req/Sec     0.88k   246.43     1.19k    80.00%
  Latency Distribution
     50%    3.81ms
     99%   16.04ms
  877 requests in 1.00s, 1.00MB read
Requests/sec:    876.44
Transfer/sec:      1.00MB
"""

WRK2 = """\
Running 20s test @ http://127.0.0.1:9099/echo
  2 threads and 20 connections
  Thread calibration: mean lat.: 10.412ms, rate sampling interval: 20ms
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    10.31ms  301.22us  11.38ms   71.20%
    Req/Sec   105.02     21.30   150.00     79.81%
  Latency Distribution (HdrHistogram - Recorded Latency)
 50.000%   10.24ms
 99.000%   11.31ms
 99.900%   11.37ms
100.000%   11.38ms
  3998 requests in 20.00s, 500.00KB read
Requests/sec:    199.88
"""

HEY = """\

Summary:
  Total:\t0.1295 secs
  Slowest:\t0.0084 secs
  Fastest:\t0.0006 secs
  Average:\t0.0025 secs
  Requests/sec:\t1544.2002

Response time histogram:
  0.001 [1]\t|\u25a0

Latency distribution:
  95% in 0.0050 secs
  99% in 0.0073 secs
"""

OHA = """\
Summary:
  Success rate:\t100.00%
  Total:\t1.0012 sec
  Slowest:\t9.1203 ms
  Fastest:\t0.1203 ms
  Average:\t1.2003 ms
  Requests/sec:\t3544.2002

Response time distribution:
  95.00% in 5.1203 ms
  99.00% in 7.3012 ms
  99.90% in 8.9012 ms
"""

K6 = """\
  \u2588 TOTAL RESULTS

    HTTP
    http_req_duration..............: avg=663.96\u00b5s max=1.35s p(90)=880\u00b5s p(95)=948.21\u00b5s
      { expected_response:true }...: avg=140.36ms min=119.08ms med=140.96ms max=154.63ms p(90)=146.88ms p(95)=148.21ms
    http_req_failed................: 0.00%  0 out of 45
    http_reqs......................: 45     6.561089/s

    EXECUTION
    iteration_duration.............: avg=3.43s min=3.25s med=3.41s max=3.71s p(90)=3.56s p(95)=3.63s
"""

FIO = """\
a: (g=0): rw=randrw, bs=(R) 4096B-4096B, (W) 4096B-4096B, (T) 4096B-4096B, ioengine=psync, iodepth=1
fio-3.33
a: (groupid=0, jobs=1): err= 0: pid=12048: Mon Nov 30 06:07:54 2026
  read: IOPS=16.7k, BW=65.1MiB/s (68.3MB/s)(65.6MiB/1008msec)
    clat (nsec): min=601, max=4087.2k, avg=42157.78, stdev=90894.08
     lat (nsec): min=631, max=4087.3k, avg=42224.96, stdev=90921.83
    clat percentiles (nsec):
     |  1.00th=[    788],  5.00th=[   1004], 10.00th=[   1080],
     | 99.00th=[ 187392], 99.50th=[ 280576], 99.90th=[1220608],
   bw (  KiB/s): min=65368, max=69072, per=50.25%, avg=67220.00, stdev=2619.12, samples=2
   iops        : min=16342, max=17268, avg=16805.00, stdev=654.78, samples=2
  write: IOPS=900, BW=65.8MiB/s (69.0MB/s)(66.4MiB/1008msec); 0 zone resets
    clat (usec): min=891, max=3713.1k, avg=31.2, stdev=49706.83
    clat percentiles (usec):
     | 99.00th=[     48], 99.50th=[  68096], 99.90th=[ 337920],
  lat (nsec)   : 750=0.38%, 1000=2.18%
"""

HYPERFINE = """\
{
  "results": [
    {
      "command": "sleep 0.01",
      "mean": 0.005664663806666669,
      "stddev": 0.0006404924573524132,
      "user": 8.140000000000014e-6,
      "min": 0.005070845140000002,
      "max": 0.006343365140000001,
      "times": [
        0.005579781140000002
      ]
    }
  ]
}
"""

PYTEST = """\
tests/test_a.py .....s                                                   [100%]
\x1b[32m===== \x1b[1m5 passed\x1b[0m, \x1b[33m1 skipped\x1b[0m\x1b[32m in 0.12s\x1b[0m =====
"""

OUTPUTS = (
    Excerpt("schbench", SCHBENCH, {"wake-up p99": 3060e-6, "requests/s": 7324.45, "request p99": 24288e-6}),
    Excerpt("schbench", OLD_SCHBENCH, {"wake-up p99": 2132e-6}, "old"),
    Excerpt("cyclictest", CYCLICTEST, {"worst latency": 5325, "mean latency": 122.5}),
    Excerpt("cyclictest", CYCLICTEST_HISTOGRAM, {"worst latency": 17187, "mean latency": 475}, "-h"),
    Excerpt("hackbench", HACKBENCH, {"time": 0.093}),
    Excerpt("hackbench", PERF_BENCH, {"time": 0.308}, "of perf"),
    Excerpt("stress-ng", STRESS_NG, {"bogo ops/s": (800 * 90000) ** 0.5}),
    Excerpt("sysbench", SYSBENCH, {"events/s": 4555.95, "latency p95": 420e-6}),
    Excerpt(
        "pgbench",
        PGBENCH,
        {"transactions/s": 729.872891, "mean latency": 0.002738, "latency deviation": 0.001918},
    ),
    Excerpt(
        "pgbench-rate",
        PGBENCH_RATE,
        {"mean latency": 0.003561, "transactions/s": 102.30846, "latency deviation": 0.002061},
    ),
    Excerpt("redis-benchmark", REDIS, {"requests/s": 60000, "p99": 0.002, "p50": 0.0005}),
    Excerpt("redis-benchmark", REDIS_QUIET, {"requests/s": 60000, "p50": 0.0005}, "-q"),
    Excerpt("redis-benchmark", REDIS_CSV, {"requests/s": 60000, "p99": 2, "p50": 0.5}, "--csv"),
    Excerpt("memtier", MEMTIER, {"operations/s": 96301.47, "p99": 6.719}),
    Excerpt("wrk", WRK, {"requests/s": 876.44, "mean latency": 980e-6, "p99": 0.01604}),
    Excerpt("wrk2", WRK2, {"p99": 0.01131, "requests/s": 199.88}),
    Excerpt("hey", HEY, {"requests/s": 1544.2002, "p99": 0.0073}),
    Excerpt("oha", OHA, {"requests/s": 3544.2002, "p99": 0.0073012, "success rate": 100}),
    Excerpt("k6", K6, {"request p95": 948.21e-6, "requests/s": 6.561089}),
    Excerpt(
        "fio",
        FIO,
        {"IOPS": 17600, "mean completion latency": 36.67889e-6, "p99 completion latency": 187.392e-6},
    ),
    Excerpt("hyperfine", HYPERFINE, {"mean time": 0.005664663806666669, "slowest run": 0.006343365140000001}),
    Excerpt("pytest", PYTEST, {"tests passed": 5}),
    Excerpt("ninja", "[1/2] touch a\n[2/2] touch b\n", {"steps done": 2}, command="ninja -C build"),
)
"""At least one of each preset."""
