-- What schedagent with schema 0004 stored for test_migrations.store_all.
INSERT INTO runs (id, workload, workload_key, hardware, hardware_key, settings, seed, started_at, finished_at, status, report) VALUES
('r1', '{"command":"make -j ü","directory":"/src","goal":"latency","metric":"(\\d+)","prepare":"make clean","timeout_s":12.5}', '75dd530995c54af9', '{"cpu_model":"some CPU","cpus":2,"kernel_release":"7.3.4","lab":"vm-tcg","memory_mib":1024}', 'f82527c7fa0ed280', '{"approve":["deploy"],"iterations":3,"nothing":null}', '18446744073709551615', '2026-11-29T23:41:01.705+00:00', '2026-11-29T23:41:01.949+00:00', 'finished', '{"best":0.81,"tried":[1]}');
INSERT INTO profiles (run_id, profile) VALUES
('r1', '{"busy_fraction":0.9,"commands":[{"burst_ns_mean":7,"comm":"cc1","count":12,"cpu_ns_max":3,"cpu_ns_p50":1,"cpu_ns_p95":2,"cpu_ns_total":4,"identity":18446744073709551615,"involuntary_switches":9,"label":"cc1","run_delay_ns_max":6,"run_delay_ns_total":5,"voluntary_switches":8}],"cpu_s":4.5,"cpus":2,"evidence":["the longest takes 7 times the median"],"histories":[{"burst_ns_mean":7,"comm":"cc1","count":12,"cpu_ns_max":3,"cpu_ns_p50":1,"cpu_ns_p95":2,"cpu_ns_total":4,"identity":18446744073709551615,"involuntary_switches":9,"label":"cc1","run_delay_ns_max":6,"run_delay_ns_total":5,"voluntary_switches":8}],"kind":"batch-long-tail","lost_events":3,"parallelism":[[0.0,1],[0.25,9]],"predicted_ratio":1.0,"psi_cpu_some_s":0.1,"psi_io_some_s":-1.0,"psi_memory_some_s":Infinity,"wall_s":2.5}');
INSERT INTO meanings (run_id, meaning, goal) VALUES
('r1', 'a build', 'shorter');
INSERT INTO plans (run_id, iteration, reason, learned) VALUES
('r1', 0, 'the profile shows a long tail', 'it was better before');
INSERT INTO candidates (run_id, iteration, key, position, policy, tunables, history, classes, reason, way, expected, refuted_by, mends) VALUES
('r1', 0, '8e7217740163d8af', 0, 'longest_first', '[["slice_us",5000]]', '[[18446744073709551615,1000000000000],[7,1]]', '[[18446744073709551615,3]]', 'the tail is long', 'configure', 'shorter', 'not shorter', '');
INSERT INTO candidates (run_id, iteration, key, position, policy, tunables, history, classes, reason, way, expected, refuted_by, mends) VALUES
('r1', 0, '5807dfc65af8e5cf', 1, 'mine', '[["slice_us",1]]', '[]', '[]', 'it stalled', 'patch', '', '', '8e7217740163d8af');
INSERT INTO verifications (run_id, candidate_key, artifact_digest, kernel_release, report, token_text) VALUES
('r1', '8e7217740163d8af', 'abababababababababababababababababababababababababababababababab', '7.3.4', '{"artifact_digest":"abababababababababababababababababababababababababababababababab","candidate_key":"8e7217740163d8af","gates":[{"detail":"fine","findings":[],"gate":"load","seconds":0.27,"status":"passed"},{"detail":"","findings":[{"cleared_by":"kick","file":"mine.bpf.c","line":7,"message":"may stall","path":[{"file":"a.h","line":3,"text":"here"}],"rule":3,"severity":"warning","where":"enqueue"}],"gate":"logic","seconds":1.0,"status":"failed"}],"kernel_release":"7.3.4","kernels":[{"detail":"","programs":{"enqueue":{"insns":120}},"release":"7.3.4","status":"passed"}],"oracles":[{"bound":1.0,"detail":"kicked","measured":0.5,"name":"kick","ok":true,"rule":3,"unit":"s"}],"policy":"longest_first","subject":"s1","token":"sat2.a.b.c","verified_by":"the service at /x","verifier_version":"v1"}', 'sat2.a.b.c');
INSERT INTO samples (run_id, iteration, block, arm, position, value, wall_ns, cpu_ns, exit_status, started_at, calibration_ns, output_tail, policy_exit, argv) VALUES
('r1', 0, 1, '8e7217740163d8af', 0, 1.5, 4611686018427387904, 5, 0, '2026-08-01', 9, 'ok ü', '', '["sh","-c","make -j"]');
INSERT INTO samples (run_id, iteration, block, arm, position, value, wall_ns, cpu_ns, exit_status, started_at, calibration_ns, output_tail, policy_exit, argv) VALUES
('r1', 0, 1, '', 1, 2.0, 7, 5, NULL, '2026-08-02', 9, '', 'runnable task stall', '["sh","-c","make -j"]');
INSERT INTO verdicts (run_id, iteration, candidate_key, outcome, ratio, low, high, confidence, pairs, disturbed, reason, at) VALUES
('r1', 0, '8e7217740163d8af', 'better', 0.81, 0.78, 0.84, 0.975, 6, 1, '19 % lower', '2026-11-29T23:41:01.777+00:00');
INSERT INTO verdicts (run_id, iteration, candidate_key, outcome, ratio, low, high, confidence, pairs, disturbed, reason, at) VALUES
('r1', 0, '5807dfc65af8e5cf', 'failed', NULL, NULL, NULL, 0.0, 0, 0, 'it stalled', '2026-11-29T23:41:01.813+00:00');
INSERT INTO antipatterns (hardware_key, workload_key, candidate_key, gate, source_digest, policy, tunables, reason, at) VALUES
('f82527c7fa0ed280', '75dd530995c54af9', '5807dfc65af8e5cf', 'stress', 'cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd', 'mine', '[["slice_us",1]]', 'stall', '2026-08-03');
INSERT INTO approvals (run_id, digest, iteration, approved, stage, shown, asked_at, decided_by, decided_at, because) VALUES
('r1', 'bd02e4f7a147d0cefadd937fcfa55c5dac853ebb7192db6caa005e3b7e654250', 0, 0, 'plan', '{"candidates":[{"policy":"longest_first"}],"run":"r1"}', '2026-11-29T23:41:01.841+00:00', 'ada', '2026-08-04', 'too long');
INSERT INTO approvals (run_id, digest, iteration, approved, stage, shown, asked_at, decided_by, decided_at, because) VALUES
('r1', '26d51d8c42130c26e6c2fa7592eb8a7bd5413e37ce378408517ba6346007da10', 0, 0, 'deploy', '{"run":"r1","token":"t"}', '2026-11-29T23:41:01.873+00:00', '', '', '');
INSERT INTO insights (run_id, text, evidence, created_at) VALUES
('r1', 'a long tail wants this', '["8e7217740163d8af"]', '2026-08-05');
INSERT INTO made_policies (name, way, parent, source, manifest, run_id, created_at, spec) VALUES
('six', 'compose', '', 'c', 'm', 'r1', '2026-08-06', '{"cpus":18446744073709551615,"name":"six"}');
INSERT INTO made_policies (name, way, parent, source, manifest, run_id, created_at, spec) VALUES
('mine', 'patch', 'fair', 'c', 'm', '', '2026-08-07', NULL);
INSERT INTO policies (name, description, targets, algorithm, limitations) VALUES
('fair', 'Fair for all', 'cpu-batch mixed', 'Orders.', 'None');
INSERT INTO looks (subject, at, elapsed_s, delay_s, pressure, commands) VALUES
('machine', 60.0, 60.0, 0.004, 0.2, '{"cc1":30.0,"ld":0.5}');
INSERT INTO looks (subject, at, elapsed_s, delay_s, pressure, commands) VALUES
('machine', 120.0, 60.0, NULL, 0.0, '{}');
INSERT INTO baselines (subject, since, until, measures, mix) VALUES
('machine', 60.0, 120.0, '{"delay":{"count":2,"deviation":0.001,"mean":0.004}}', '{"cc1":0.75}');
INSERT INTO recommendations (id, kind, subject, policy, what, why, evidence, workload, cgroup, standing, note, since, expires_at) VALUES
('0a1b2c3d', 'deploy', '75dd530995c54af9', 'six', 'schedagent deploy', 'It is better.', '{"ratio":0.81,"run":"r1"}', '{"command":"make -j ü","directory":"/src","goal":"latency","metric":"(\\d+)","prepare":"make clean","timeout_s":12.5}', '/canary', 'withdrawn', 'a newer one', 130.0, 10000000000.0);
INSERT INTO requests (number, recommendation_id, cgroup, asked_by, progress, run_id, note, asked_at, started_at, ended_at, deployment) VALUES
(1, '0a1b2c3d', '/canary', 'ada', 'keeping', 'r1', 'runs', 140.0, 150.0, 160.0, 7);
INSERT INTO policy_search (name, description, targets, algorithm, limitations, experience) VALUES
('fair', 'Fair for all', 'cpu-batch mixed', 'Orders.', 'None', '');
