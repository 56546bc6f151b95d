package fairness

import (
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// bounds are those of all histograms of times here, and of the bucket of what took no time at all.
var bounds = [...]time.Duration{
	0, 5 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 15 * time.Second, 30 * time.Second,
}

// durations is a histogram that costs a request two additions.
type durations struct {
	in  [len(bounds) + 1]atomic.Uint64 // by the first bound that is not exceeded; the last exceed all
	sum atomic.Int64
}

func (d *durations) add(took time.Duration) {
	i := 0
	for i < len(bounds) && took > bounds[i] {
		i++
	}
	d.in[i].Add(1)
	d.sum.Add(int64(took))
}

// read returns the histogram with none more that took no time.
func (d *durations) read(none uint64) (n uint64, sum float64, buckets map[float64]uint64) {
	n, buckets = none, make(map[float64]uint64, len(bounds))
	for i := range d.in {
		n += d.in[i].Load()
		if i < len(bounds) {
			buckets[bounds[i].Seconds()] = n
		}
	}
	return n, time.Duration(d.sum.Load()).Seconds(), buckets
}

// waits are how long requests waited in a queue, by whether they were then served.
type waits [2]durations // refused, served

func (w *waits) add(d time.Duration, served bool) {
	if served {
		w[1].add(d)
	} else {
		w[0].add(d)
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
	waitDesc       = desc("request_wait_duration_seconds", "How long requests waited for a seat.", "priority_level", "flow_schema", "execute")
	tookDesc       = desc("request_execution_seconds", "How long requests had a seat; watches until they have begun.", "priority_level", "flow_schema", "type")
	workDesc       = desc("work_estimated_seats", "Seats that requests took: one each.", "priority_level", "flow_schema")
	queuedDesc     = desc("current_inqueue_seats", "Seats that are waited for.", "priority_level", "flow_schema")
	kindsDesc      = prometheus.NewDesc("apiserver_current_inqueue_requests", "Requests that wait for a seat, by whether they change anything.", []string{"request_kind"}, nil)
	nominalDesc    = desc("nominal_limit_seats", "Seats by the level's share.", "priority_level")
	lowerDesc      = desc("lower_limit_seats", "Seats that the level does not lend.", "priority_level")
	upperDesc      = desc("upper_limit_seats", "Seats that the level may have at most.", "priority_level")
	currentDesc    = desc("current_limit_seats", "Seats that the level has now.", "priority_level")
	peakDesc       = desc("demand_seats_high_watermark", "The most seats that were wanted between the last two adjustments.", "priority_level")
	demandDesc     = desc("demand_seats_smoothed", "Seats that were wanted, forgotten slowly.", "priority_level")
)

// Describe is prometheus.Collector's.
func (c *Controller) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{dispatchedDesc, rejectedDesc, inQueueDesc, executingDesc, seatsDesc, waitDesc, tookDesc,
		workDesc, queuedDesc, kindsDesc, peakDesc, nominalDesc, lowerDesc, upperDesc, currentDesc, demandDesc} {
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
		gauge(queuedDesc, float64(f.waiting.Load()), f.level.name, f.name)
		histogram := func(d *prometheus.Desc, of *durations, none uint64, label string) {
			if n, sum, buckets := of.read(none); n > 0 {
				ch <- prometheus.MustNewConstHistogram(d, n, sum, buckets, f.level.name, f.name, label)
			}
		}
		for i := range f.took {
			histogram(tookDesc, &f.took[i], 0, kindNames[i])
		}
		served := uint64(f.dispatched.Load())
		if served > 0 {
			seats := map[float64]uint64{}
			for _, b := range []float64{1, 2, 4, 8, 16, 32, 64, 100} {
				seats[b] = served
			}
			ch <- prometheus.MustNewConstHistogram(workDesc, served, float64(served), seats, f.level.name, f.name)
		}
		if f.level.exempt {
			continue
		}
		queued, _, _ := f.waited[1].read(0)
		for i, none := range []uint64{0, served - min(queued, served)} {
			histogram(waitDesc, &f.waited[i], none, strconv.FormatBool(i == 1))
		}
	}
	kinds := map[string]int{"readOnly": 0, "mutating": 0}
	for _, l := range p.levels {
		l.mu.Lock()
		gauge(nominalDesc, float64(l.nominal), l.name)
		gauge(lowerDesc, float64(l.least), l.name)
		gauge(upperDesc, float64(min(l.most, c.cfg.Seats)), l.name)
		gauge(currentDesc, float64(l.limit), l.name)
		gauge(demandDesc, l.smooth, l.name)
		gauge(peakDesc, float64(l.highest), l.name)
		for i := range l.queues {
			for _, w := range l.queues[i].waiting {
				kind := "mutating"
				switch w.who.Verb {
				case "get", "list", "watch", "head", "options":
					kind = "readOnly"
				}
				kinds[kind]++
			}
		}
		l.mu.Unlock()
	}
	for kind, n := range kinds {
		gauge(kindsDesc, float64(n), kind)
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
