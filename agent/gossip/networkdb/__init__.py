"""NetworkDB: which nodes take part in which network, and the entries of the networks' tables.

An entry belongs to the node that wrote it last and carries that node's Lamport time; the newest
time per (table, network, key) wins everywhere. Attachments and node events ride on membership
broadcasts, table events go directly between the nodes of a network, and bulk syncs over streams
repair what gossip lost. Wire compatible with Docker 19.03 to 29.7, all four behaviour classes.

=============  ====================================================================
module         concept
=============  ====================================================================
``wire``       messages (protobuf at the edge, dataclasses inside)
``clock``      Lamport clocks
``table``      entries, tombstones and hidden entries
``peers``      nodes and their attachments
``own``        this node's networks, and what it wants their tables to say
``state``      all of these together, and the changes readers have to hear
``early``      events that arrived before what they depend on
``publisher``  own networks and entries: announcing, gossiping, reasserting
``sync``       splitting bulk syncs, and matching replies to requests
``exchange``   bulk syncs in both directions
``judge``      what is made of others' events
``core``       the whole: nodes that come and go, full exchanges, reaping
=============  ====================================================================

:class:`~agent.gossip.networkdb.core.NetworkDB` is the delegate of a
:class:`~agent.gossip.swim.core.Swim`; :class:`agent.gossip.node.Node` joins the two.
"""
