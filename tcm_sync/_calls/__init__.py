"""The calls of a client, one file each, on what they share.

Belongs here: from a public method's arguments to a request, and from the reply to what the method returns.
Does not belong here: sockets, and anything that a user imports (`tcm_sync.client` delegates to this package).
"""
