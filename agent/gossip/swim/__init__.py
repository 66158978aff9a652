"""SWIM membership with Lifeguard, wire compatible with hashicorp/memberlist protocol 2.

==============  ===================================================================================
module          concept
==============  ===================================================================================
``lzw``         the compression of the wire (Go's ``compress/lzw``, LSB first, 8 bits)
``keyring``     the keys of the cluster: which one sends, which ones are accepted
``seal``        encryption of datagrams and stream frames under a keyring
``wire``        messages, and the wrappers around them
``awareness``   Lifeguard's health score: how far this node trusts its own view
``suspicion``   how long a suspect may prove that it lives
``queue``       broadcasts waiting for their share of retransmissions
``membership``  what is known about each node, and whom to probe or gossip to
``core``        the protocol itself
==============  ===================================================================================

:class:`~agent.gossip.swim.core.Swim` is driven with bytes and times and answers with outputs::

    swim.receive_datagram(data, source, now)   # acks are in the outputs at once
    swim.work(now)                             # everything else it queued
    swim.tick(now)                             # timers that are due
    for output in swim.take_outputs(): ...     # Datagram, Dial, Trace
"""
