"""Stubs built from ``proto/`` (not in git; ``deploy/build_stubs.py`` makes them) and their one codec.

``swarm.api.docker.swarmkit`` is the wire twin of Swarm's own API, ``swarm.api.networkdb`` that of
its gossip tables, ``swarm.api.overswarm.v1`` what only this project speaks. Nothing outside an edge
module sees a generated class: :mod:`swarm.api.codec` turns them into :mod:`swarm.model` objects.
"""
