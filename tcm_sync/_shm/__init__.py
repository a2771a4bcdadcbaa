"""Tensors in shared memory: when they go that way, the segments that hold them, and who may reuse one.

Does not belong here: the calls that use it (`tcm_sync._calls`).
"""
