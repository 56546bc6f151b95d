// Package supervisor keeps a machine's services running where systemd does not.
//
// One background process (Run) owns them. `keelson up` tells it through its socket
// what to run (Client.Apply) and watches them become ready (Client.Watch); `keelson
// down` stops them in order (Client.Shutdown).
//
// # The life of a service
//
//	         dependencies ready              READY=1
//	waiting ─────────────────────▶ starting ─────────▶ ready
//	   ▲                               │                 │
//	   │ back-off over                 └──── exit ───────┤
//	   └────────────────── backoff ◀─────────────────────┘
//	any ── stop asked ──▶ stopping ── exit ──▶ stopped ── start asked ──▶ waiting
//
// # Promises
//
//   - A service that ends is started again, after 100 ms at first and at most 10 s
//     later; having run for a minute makes it a good one again (Backoff, pure).
//   - A service that was to ping (Watchdog) and has not is killed and started again.
//   - Losing the supervisor loses nothing: services write straight to their logs, and a
//     new supervisor finds them by pid file and start time (a pid alone may have been
//     given to another process) and carries on.
//   - Stopping is SIGTERM, then SIGKILL after StopWithin; dependants stop first.
//   - A log is at most LogLimitBytes long and has one predecessor of that size.
//
// It does not promise to restart dependants when what they need restarts: daemons
// reconnect by themselves.
//
// # Goroutines
//
// Each service has a keeper goroutine that owns its data; the shared table of
// Statuses is guarded by Supervisor.mu. Run waits for all of them.
package supervisor
