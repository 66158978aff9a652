"""The cluster's objects as frozen dataclasses; no code here knows protobuf.

A spec is what a user asked for and is never edited; an object (:class:`Network`, :class:`Node`,
:class:`Task`, :class:`Service`, :class:`Cluster`) is that spec plus what the cluster made of it.
Change one with :func:`dataclasses.replace`. ``swarm.api.codec`` converts to and from the wire.
"""

from swarm.model.enums import *
from swarm.model.objects import *
from swarm.model.specs import *
from swarm.model.types import *
