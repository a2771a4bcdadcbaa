"""Tensors in shared memory: when a call uses it, the segments that hold them, and which call may reuse one.

The calls themselves do not belong here (`tcm_sync._calls`).
"""
