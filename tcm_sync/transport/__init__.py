"""How messages travel: sockets, the pool that keeps them, and the one thread that reads them.

The path of a call: `runtime` waits at the gates, `pool` leases a connection (whose `growth` asks `connector`
for a new one if there is room), `connection` sends in the caller's thread, `reader` resolves the future in
`replies`, and the `call` reads what came.

Order of locks, each taken only while holding those before it, or none:

1. the pool's (guards which connections there are and who waits for one);
2. one of: a gate's, a connection's (guards its closing and each call on its socket), the connector's, that
   of the counts.

The locks of shared memory (`tcm_sync.sharing`, then the arena's) are taken while none of these is held, and
the client's own before any of them all.

Under the pool's lock nothing is called that could wait: no network socket, no user callback, no log.
Finalizers take one lock, which is re-entrant and held for no longer than it takes to write a byte to the
reader's wake-up socket without waiting.
"""
