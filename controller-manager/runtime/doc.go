// Package runtime is what every controller runs on: shared typed caches, keyed
// queues, read-your-writes, declared reads and writes, events and metrics.
//
// # A controller
//
// A controller is one [Row] in controllers/table.go and one folder. The row
// declares its name, what it reads and writes and the RBAC rules that follow;
// New wires it:
//
//	var Row = runtime.Row{
//		Name:   "replicaset-controller",
//		Reads:  []string{"replicasets.apps", "pods"},
//		Writes: []string{"pods", "replicasets.apps/status"},
//		New: func(e *runtime.Env) error {
//			c := &controller{sets: runtime.Read[*appsv1.ReplicaSet](e), pods: runtime.Read[*corev1.Pod](e)}
//			q := e.Keyed("", 8, c.pass)
//			runtime.On(q, c.sets, runtime.Self[*appsv1.ReplicaSet])
//			runtime.On(q, c.pods, c.setsOf)
//			return nil
//		},
//	}
//
// pass observes (the caches), decides (a pure function in decide.go) and applies
// (API writes through [Create], [Update], [UpdateStatus], [Patch] and [Delete]).
// It returns when to look again; an error means "again, with back-off"; an error
// wrapped by [Permanent] means "only when something changes". A controller that
// does not work by key starts plain goroutines with [Env.Go]; several queues are
// several calls of Keyed with different names.
//
// To add one: a folder under controllers/ with decide.go (pure) and apply.go
// (the Row, the pass), one row in controllers/table.go, and, if it reads a kind
// that nothing has read before, one row in kinds.go. Reads and Writes use the
// names of kinds.go ("pods", "replicasets.apps", "replicasets.apps/status"); a write
// may be narrowed to some verbs ("update,patch nodes").
//
// # What the runtime promises
//
//   - One key is never worked on by two workers at once.
//   - Read your own writes: after a pass has written, the next pass of that key
//     starts only when the caches show what was written. So a decision never has
//     to guess ("expectations"). A cache that does not catch up within
//     [SettleLimit] puts the key off; it never lets a pass run on old data.
//   - A write to something that the row does not declare fails, loudly.
//   - Queues are bounded by the number of distinct keys: events coalesce.
//   - Every row's caches are warm before its first pass, on a standby too.
//
// It does not promise that every event leads to a pass of its own, nor an order
// between keys.
//
// # Goroutines
//
// [Manager.Run] owns them all: one per cache, the workers of each queue, and what
// Env.Go was given. It returns when all have ended.
//
// # Debugging and testing
//
// /debug/controllers shows, per controller, queue lengths, keys that wait for a
// cache, and the last decisions with their reasons. "controller-manager plan"
// runs one controller's decision on a file. Package ctrltest runs one row to rest
// against a memory API.
package runtime
