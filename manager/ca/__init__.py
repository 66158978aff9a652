"""The cluster's certificate authority.

``authority`` decides, without I/O: what a join token is worth, and who may have which certificate.
``service`` is the gRPC side: CA (root, unlock key) and NodeCA (certificates), stored and signed in
one transaction. ``rotation`` decides how the root is replaced, without I/O; ``reconciler`` carries that
on, on the leader. ``renewal`` keeps this manager's own certificate fresh. The keys, certificates and
tokens themselves are made in :mod:`swarm.identity`.
"""
