"""Connections kept open, and who may use one when: the pool, its wait queue, the gates and limits before it.

Belongs here: what decides whether, when and on which connection an attempt is sent. Does not belong here:
what is sent, and what a reply means to its caller (`tcm_sync._calls`).

Order of locks; each is taken only while locks above it, or none, are held:

1. a client's own (`tcm_sync._calls`), then those of shared memory (`tcm_sync._shm`);
2. that of a pool's state: guards which connections there are and who waits for one; or that of the turns of
   one manager, then that of the process's table, then the table's own, which is held for a few
   microseconds of reading and writing a file, and waited for 5 ms at most in another process;
3. one of: a gate's, a tenant rate's, a connection's (guards its closing and each call on its socket), the
   connector's, that of the counters.

Under the lock of a pool's state nothing is called that could wait: no network socket, no user callback, no
log call.
Finalizers take one lock, which is re-entrant and held for no longer than it takes to write a byte to the
reader's wake-up socket without waiting.
"""
