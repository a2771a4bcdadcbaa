"""Which test files are nearest to a module: those that a mutant of it is run against, the quickest first.

A mutant that none of these kills counts as one that survived, even if another file would kill it: a mistake
in a module is to be found by the tests that stand next to it.
"""

from __future__ import annotations

NEAREST = {
    "tcm_sync/_deadline.py": "unit/test_deadline peer/test_outcomes",
    "tcm_sync/_calls/retrying.py": "unit/test_retry peer/test_retries peer/test_outcomes",
    "tcm_sync/_pool/attempt.py": (
        "unit/test_attempt unit/test_client_gates peer/test_leases peer/test_outcomes peer/test_retries "
        "peer/test_overload"
    ),
    "tcm_sync/_pool/call.py": "unit/test_attempt peer/test_outcomes peer/test_retries peer/test_replies",
    "tcm_sync/_pool/client_gates.py": (
        "unit/test_client_gates peer/test_leases peer/test_retries peer/test_overload"
    ),
    "tcm_sync/_pool/client_turns.py": "unit/test_client_turns client/test_turns",
    "tcm_sync/_pool/concurrency_limit.py": "unit/test_concurrency_limit",
    "tcm_sync/_pool/connector.py": "unit/test_threads unit/test_pool",
    "tcm_sync/_pool/gate.py": "unit/test_gate unit/test_client_gates unit/test_logs",
    "tcm_sync/_pool/inventory.py": "unit/test_inventory unit/test_pool peer/test_connection_endings",
    "tcm_sync/_pool/lease.py": "unit/test_lease peer/test_leases",
    "tcm_sync/_pool/manager_state.py": (
        "unit/test_pool_state unit/test_gate unit/test_pool peer/test_connecting"
    ),
    "tcm_sync/_pool/opening.py": (
        "unit/test_pool_state peer/test_stats unit/test_pool_model unit/test_pool peer/test_connecting "
        "unit/test_logs"
    ),
    "tcm_sync/_pool/tenant_rate.py": "unit/test_tenant_rate",
    "tcm_sync/_pool/pool.py": (
        "unit/test_lease unit/test_pool_state unit/test_inventory unit/test_pool_model peer/test_leases "
        "peer/test_shared_memory_requests unit/test_logs"
    ),
    "tcm_sync/_pool/pool_limits.py": "unit/test_inventory unit/test_pool_state",
    "tcm_sync/_pool/pool_state.py": (
        "unit/test_pool_state unit/test_pool_model unit/test_pool peer/test_leases peer/test_connecting "
        "peer/test_stats"
    ),
    "tcm_sync/_pool/runtime.py": "unit/test_logs unit/test_pool peer/test_outcomes client/test_close",
    "tcm_sync/_pool/stream_turns.py": "unit/test_stream_turns peer/test_known_faults",
    "tcm_sync/_pool/process_table.py": "unit/test_turns client/test_turns unit/test_logs",
    "tcm_sync/_pool/turn_keys.py": "unit/test_turns client/test_turns",
    "tcm_sync/_pool/turn_file.py": "unit/test_turn_table unit/test_turns",
    "tcm_sync/_pool/turn_table.py": "unit/test_turn_table unit/test_turns",
    "tcm_sync/_pool/turns.py": "unit/test_turns client/test_turns",
    "tcm_sync/_pool/waiters.py": "unit/test_waiters unit/test_pool",
    "tcm_sync/_transport/addresses.py": "unit/test_addresses peer/test_networks",
    "tcm_sync/_transport/advice.py": "unit/test_connect_advice unit/test_handshake",
    "tcm_sync/_transport/authentication.py": (
        "unit/test_opener unit/test_pool peer/test_auth peer/test_secrets_sent_back peer/test_closing"
    ),
    "tcm_sync/_transport/connection.py": "unit/test_connection peer/test_connection_endings",
    "tcm_sync/_transport/counters.py": "unit/test_counters peer/test_stats",
    "tcm_sync/_transport/credentials.py": "unit/test_credentials peer/test_auth",
    "tcm_sync/_transport/frames.py": "unit/test_frames",
    "tcm_sync/_transport/handshake.py": "unit/test_handshake peer/test_handshake_answers",
    "tcm_sync/_transport/heads.py": "unit/test_handshake unit/test_proxies",
    "tcm_sync/_transport/http.py": "unit/test_http",
    "tcm_sync/_transport/incoming.py": (
        "unit/test_reader peer/test_replies peer/test_outcomes peer/test_garbage peer/test_stream_messages"
    ),
    "tcm_sync/_transport/liveness.py": "unit/test_liveness peer/test_networks peer/test_replies",
    "tcm_sync/_transport/nested_tls.py": "peer/test_proxies",
    "tcm_sync/_transport/opener.py": (
        "unit/test_opener unit/test_pool peer/test_auth peer/test_secrets_sent_back peer/test_closing "
        "unit/test_logs"
    ),
    "tcm_sync/_transport/poller.py": "unit/test_poller unit/test_reader peer/test_replies",
    "tcm_sync/_transport/proxies.py": "unit/test_proxies peer/test_proxies",
    "tcm_sync/_transport/reader.py": (
        "unit/test_reader peer/test_replies peer/test_garbage peer/test_stream_messages unit/test_logs"
    ),
    "tcm_sync/_transport/replies.py": "unit/test_stream_replies peer/test_replies peer/test_stream_messages",
    "tcm_sync/_transport/sockets.py": "unit/test_sockets peer/test_connecting peer/test_tls",
    "tcm_sync/_transport/tcp_state.py": "unit/test_liveness peer/test_networks",
    "tcm_sync/_transport/tenant.py": "unit/test_turns peer/test_auth",
    "tcm_sync/_transport/tls.py": "unit/test_tls unit/test_sockets peer/test_tls_failures peer/test_tls",
    "tcm_sync/_transport/tls_errors.py": "peer/test_tls_errors peer/test_proxies",
    "tcm_sync/_transport/unsolicited.py": (
        "unit/test_unsolicited unit/test_logs peer/test_stats peer/test_replies"
    ),
    "tcm_sync/_wire/decode.py": "unit/test_wire_decode peer/test_reply_forms",
    "tcm_sync/_wire/encode.py": "unit/test_wire_encode unit/test_pieces",
    "tcm_sync/_wire/failures.py": "unit/test_wire_failures peer/test_known_faults",
    "tcm_sync/_wire/messages.py": "unit/test_wire_encode unit/test_wire_decode",
    "tcm_sync/_wire/split_json.py": "unit/test_split_json",
    "tcm_sync/_wire/text_ends.py": "unit/test_text_pieces unit/test_split_json",
    "tcm_sync/_wire/plain.py": "unit/test_numbers peer/test_info",
    "tcm_sync/_wire/quote.py": "unit/test_quote",
    "tcm_sync/_wire/readiness.py": "unit/test_http peer/test_probes",
    "tcm_sync/_wire/unreadable.py": "unit/test_wire_decode unit/test_tensors_outputs",
}


#: Modules of which no mutant is drawn, as patterns, and why. Mutants are for what decides when a request is
#: sent, and to which call an answer goes: that shows only under load, and when something fails.
NOT_DRAWN = {
    "tcm_sync/**/__init__.py": "it has names alone",
    "tcm_sync/*.py": "it checks values, holds them or passes them on, and has a test for each",
    "tcm_sync/_calls/*.py": "its branches show in results and errors, which the tests of each call compare",
    "tcm_sync/_shm/*.py": "its mistakes leave files behind, which every test looks for",
    "tcm_sync/_tensors/*.py": "arrays of hypothesis are compared with NumPy's own conversions",
    "tcm_sync/cli/*.py": "what it prints is compared",
    "tcm_sync/compat/*.py": "it has other names for calls that are tested without it",
    "tcm_sync/events/*.py": "it reports what was decided elsewhere; no call depends on it",
    "tcm_sync/integrations/**/*.py": "it needs other packages, and adapts what is tested without it",
    "tcm_sync/local/*.py": "it is the manager of most tests, which fail with it",
    "tcm_sync/models/*.py": "what it reads is compared with what was written",
}


def nearest(module: str) -> list[str]:
    """Return the test files that are nearest to a module."""
    return [f"tests/{name}.py" for name in NEAREST[module].split()]
