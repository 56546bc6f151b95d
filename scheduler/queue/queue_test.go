package queue_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/keelson/keelson/libs/testkit"
	"github.com/keelson/keelson/scheduler/framework"
	"github.com/keelson/keelson/scheduler/plugins"
	"github.com/keelson/keelson/scheduler/queue"
)

// TestScripts plays the queue: each command says at which second it happens.
//
//	add name [priority=N] [gate=x] [class=cpu]    update is the same command
//	pop | fail name [by=Plugin,Plugin] | delete name
//	event Kind[|Kind] [node=free-cpu] | tick | dump | arrivals | refused
func TestScripts(t *testing.T) {
	testkit.Script(t, "*.txt", func(t *testing.T) func(*testing.T, []string, string) string {
		q := queue.New(queue.Config{InitialBackoff: time.Second, MaxBackoff: 10 * time.Second, StayUnschedulable: 5 * time.Minute}, plugins.Table, plugins.PrioritySort)
		start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		return func(t *testing.T, words []string, _ string) string {
			seconds, err := time.ParseDuration(words[0])
			if err != nil {
				t.Fatalf("%v: the first word is a time such as 3s: %v", words, err)
			}
			now := start.Add(seconds)
			command, words := words[1], words[2:]
			args := testkit.Args(words)
			switch command {
			case "add":
				q.Add(pod(t, words[0], args), now)
			case "pop":
				if it := q.Pop(now); it != nil {
					return fmt.Sprintf("%s (attempt %d)", it.Pod.ObjectMeta.Name, it.Attempts)
				}
				return "nothing"
			case "fail":
				var by []string
				if args["by"] != "" {
					by = strings.Split(args["by"], ",")
				}
				q.Failed(testkit.UID("Pod", words[0]), by, "refused", now)
			case "delete":
				q.Delete(testkit.UID("Pod", words[0]))
			case "event":
				kind, err := framework.KindsOf(words[0])
				if err != nil {
					t.Fatal(err)
				}
				e := framework.Event{Kind: kind}
				if cpu := args["free"]; cpu != "" {
					e.Node = framework.NewNode(testkit.Node("n", testkit.Capacity("cpu="+cpu+",memory=1Gi,pods=10")), 0)
				}
				return fmt.Sprintf("%d moved", q.Wake(&e, now))
			case "tick":
				next := q.Tick(now)
				if next.IsZero() {
					return "only after an event"
				}
				return "again at " + next.Sub(start).String()
			case "dump":
				var b strings.Builder
				for _, it := range q.Dump() {
					fmt.Fprintf(&b, "%s: %s, attempts %d\n", it.Pod.ObjectMeta.Name, it.Place, it.Attempts)
				}
				return b.String()
			case "arrivals":
				var lines []string
				for _, a := range q.Arrivals() {
					lines = append(lines, fmt.Sprintf("%s, %s: %d", a.Place, a.Event, a.Pods))
				}
				slices.Sort(lines)
				return strings.Join(lines, "\n")
			case "refused":
				return fmt.Sprint(q.Refused())
			default:
				t.Fatalf("no command %q", command)
			}
			return ""
		}
	})
}

func pod(t *testing.T, name string, args map[string]string) *framework.Pod {
	t.Helper()
	p := testkit.Pod(name)
	p.Generation = 1
	if s := args["priority"]; s != "" {
		var n int32
		if _, err := fmt.Sscan(s, &n); err != nil {
			t.Fatal(err)
		}
		testkit.Priority(n)(p)
	}
	if s := args["cpu"]; s != "" {
		testkit.Requests("cpu=" + s)(p)
	}
	if g := args["gate"]; g != "" {
		p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: g}}
	}
	return framework.NewPod(p)
}
