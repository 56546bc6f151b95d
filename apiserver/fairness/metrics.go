package fairness

import (
	"fmt"
	"io"
	"strconv"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// waits is a histogram of how long requests waited, by whether they were then served.
type waits struct {
	mu   sync.Mutex
	kind [2]histogram // refused, served
}

type histogram struct {
	counts [len(waitBuckets)]uint64
	n      uint64
	sum    float64
}

// waitBuckets are upper bounds in seconds.
var waitBuckets = [...]float64{0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30}

func (w *waits) add(d time.Duration, served bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := &w.kind[0]
	if served {
		h = &w.kind[1]
	}
	h.n++
	h.sum += d.Seconds()
	for i, b := range waitBuckets {
		if d.Seconds() <= b {
			h.counts[i]++
		}
	}
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("apiserver_flowcontrol_"+name, help, labels, nil)
}

// Metrics have upstream's names.
var (
	dispatchedDesc = desc("dispatched_requests_total", "Requests that were given a seat.", "priority_level", "flow_schema")
	rejectedDesc   = desc("rejected_requests_total", "Requests that were refused.", "priority_level", "flow_schema", "reason")
	inQueueDesc    = desc("current_inqueue_requests", "Requests that wait.", "priority_level", "flow_schema")
	executingDesc  = desc("current_executing_requests", "Requests that are served.", "priority_level", "flow_schema")
	seatsDesc      = desc("current_executing_seats", "Seats that are taken.", "priority_level", "flow_schema")
	waitDesc       = desc("request_wait_duration_seconds", "How long requests waited that found no seat at once.", "priority_level", "flow_schema", "execute")
	nominalDesc    = desc("nominal_limit_seats", "Seats by the level's share.", "priority_level")
	lowerDesc      = desc("lower_limit_seats", "Seats that the level does not lend.", "priority_level")
	upperDesc      = desc("upper_limit_seats", "Seats that the level may have at most.", "priority_level")
	currentDesc    = desc("current_limit_seats", "Seats that the level has now.", "priority_level")
	demandDesc     = desc("demand_seats_smoothed", "Seats that were wanted, forgotten slowly.", "priority_level")
)

// Describe is prometheus.Collector's.
func (c *Controller) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{dispatchedDesc, rejectedDesc, inQueueDesc, executingDesc, seatsDesc, waitDesc,
		nominalDesc, lowerDesc, upperDesc, currentDesc, demandDesc} {
		ch <- d
	}
}

// Collect is prometheus.Collector's.
func (c *Controller) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	p := c.plan.Load()
	for _, f := range p.flows {
		ch <- prometheus.MustNewConstMetric(dispatchedDesc, prometheus.CounterValue, float64(f.dispatched.Load()), f.level.name, f.name)
		gauge(executingDesc, float64(f.executing.Load()), f.level.name, f.name)
		gauge(seatsDesc, float64(f.executing.Load()), f.level.name, f.name)
		gauge(inQueueDesc, float64(f.waiting.Load()), f.level.name, f.name)
		for i, reason := range reasons {
			if n := f.rejected[i].Load(); n > 0 {
				ch <- prometheus.MustNewConstMetric(rejectedDesc, prometheus.CounterValue, float64(n), f.level.name, f.name, reason)
			}
		}
		f.waited.mu.Lock()
		for i, h := range f.waited.kind {
			if h.n == 0 {
				continue
			}
			buckets := map[float64]uint64{}
			for k, b := range waitBuckets {
				buckets[b] = h.counts[k]
			}
			ch <- prometheus.MustNewConstHistogram(waitDesc, h.n, h.sum, buckets, f.level.name, f.name, strconv.FormatBool(i == 1))
		}
		f.waited.mu.Unlock()
	}
	for _, l := range p.levels {
		l.mu.Lock()
		gauge(nominalDesc, float64(l.nominal), l.name)
		gauge(lowerDesc, float64(l.least), l.name)
		gauge(upperDesc, float64(min(l.most, c.cfg.Seats)), l.name)
		gauge(currentDesc, float64(l.limit), l.name)
		gauge(demandDesc, l.smooth, l.name)
		l.mu.Unlock()
	}
}

// Dump writes one of the tables of /debug/api_priority_and_fairness; false when there is none of this name.
func (c *Controller) Dump(w io.Writer, name string, details bool) bool {
	levels := c.plan.Load().levels
	t := tabwriter.NewWriter(w, 8, 0, 1, ' ', 0)
	defer t.Flush()
	switch name {
	case "dump_priority_levels":
		fmt.Fprint(t, "PriorityLevelName,\tActiveQueues,\tIsIdle,\tIsQuiescing,\tWaitingRequests,\tExecutingRequests,\tDispatchedRequests,\tRejectedRequests,\tTimedoutRequests,\tCancelledRequests\n")
		for _, l := range levels {
			l.mu.Lock()
			active := 0
			for i := range l.queues {
				if l.queues[i].busy > 0 || len(l.queues[i].waiting) > 0 {
					active++
				}
			}
			fmt.Fprintf(t, "%s,\t%d,\t%t,\tfalse,\t%d,\t%d,\t%d,\t%d,\t%d,\t%d\n",
				l.name, active, l.busy+l.waiting == 0, l.waiting, l.busy, l.passed, l.refused, l.late, l.left)
			l.mu.Unlock()
		}
	case "dump_queues":
		fmt.Fprint(t, "PriorityLevelName,\tIndex,\tPendingRequests,\tExecutingRequests,\tSeatsInUse\n")
		for _, l := range levels {
			l.mu.Lock()
			for i := range l.queues {
				q := &l.queues[i]
				fmt.Fprintf(t, "%s,\t%d,\t%d,\t%d,\t%d\n", l.name, i, len(q.waiting), q.busy, q.busy)
			}
			l.mu.Unlock()
		}
	case "dump_requests":
		head := "PriorityLevelName,\tFlowSchemaName,\tQueueIndex,\tRequestIndexInQueue,\tArriveTime"
		if details {
			head += ",\tUserName,\tVerb,\tAPIPath,\tNamespace,\tName,\tAPIVersion,\tResource,\tSubResource"
		}
		fmt.Fprintln(t, head)
		for _, l := range levels {
			l.mu.Lock()
			for i := range l.queues {
				for k, r := range l.queues[i].waiting {
					fmt.Fprintf(t, "%s,\t%s,\t%d,\t%d,\t%s", l.name, r.flow.name, i, k, r.at.UTC().Format(time.RFC3339Nano))
					if a := &r.who; details {
						fmt.Fprintf(t, ",\t%s,\t%s,\t%s,\t%s,\t%s,\t%s,\t%s,\t%s", a.User.Name, a.Verb, a.Path, a.Namespace, a.Name, a.Version, a.Plural, a.Subresource)
					}
					fmt.Fprintln(t)
				}
			}
			l.mu.Unlock()
		}
	default:
		return false
	}
	return true
}
