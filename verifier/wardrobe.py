"""What the crew of the proving ground wears for a policy: the constants that its object compares with.

May import verifier.logic.taint, verifier.object and verifier.proving.
"""

from __future__ import annotations

from verifier.logic.taint.looked import constants
from verifier.object.image import BpfImage
from verifier.proving.identity import Worn, wearable


def worn_for(image: BpfImage) -> Worn:
    """Return what tasks can take on of what an object looks at; it may be hostile, so this is bounded in every way."""
    looked = constants(image)
    return wearable(
        names=looked.names if "comm" in looked.inputs else (),
        uids=sorted(looked.uids, reverse=True),  # the small ones are numbers of many other things
        gids=sorted(looked.gids, reverse=True),
        pids=looked.pids,
        cgroups=looked.texts if "cgroup" in looked.inputs else (),
        arguments=looked.texts if "arguments" in looked.inputs else (),
        seconds=looked.seconds,
    )
