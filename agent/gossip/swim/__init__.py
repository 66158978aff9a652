"""SWIM membership with Lifeguard, wire compatible with hashicorp/memberlist protocol 2.

==============  ===================================================================================
module          concept
==============  ===================================================================================
``lzw``         the compression of the wire (Go's ``compress/lzw``, LSB first, 8 bits)
``keyring``     the keys of the cluster: which one sends, which ones are accepted
``seal``        encryption of datagrams and stream frames under a keyring
``replay``      what was opened before, and is not opened again
``messages``    what nodes say to each other
``fields``      the bodies of messages: the old msgpack
``wire``        messages as bytes
``wrappers``    several messages in one, checksum, compression
``awareness``   Lifeguard's health score: how far this node trusts its own view
``suspicion``   how long a suspect may prove that it lives
``queue``       broadcasts waiting for their share of retransmissions
``membership``  what is known about each node, and whom to probe or gossip to
``rules``       what a node makes of claims about members
``probing``     whose turn it is to be probed, and answers to others' probes
``delegate``    the layer above, as seen from here
``core``        datagrams and streams, gossip, full exchanges
==============  ===================================================================================

:class:`~agent.gossip.swim.core.Swim` is driven with bytes and times and answers with outputs::

    swim.receive_datagram(data, host, port)    # acks are in the outputs at once
    while swim.work(64): ...                   # everything else it queued
    for output in swim.take_outputs(): ...     # Datagram, Dial, Trace
"""
