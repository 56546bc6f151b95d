package fairness

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
)

func asks(user, groups, verb, what string) *authz.Attributes {
	a := &authz.Attributes{User: &authn.User{Name: user, Groups: strings.Split(groups, ",")}, Verb: verb}
	if strings.HasPrefix(what, "/") {
		a.Path = what
		return a
	}
	a.Resource, a.Version = true, "v1"
	parts := strings.Split(what, ":") // group:plural[:namespace]
	a.Group = parts[0]
	a.Plural, a.Subresource, _ = strings.Cut(parts[1], "/")
	if len(parts) > 2 {
		a.Namespace = parts[2]
	}
	return a
}

func TestDefaultsClassify(t *testing.T) {
	c := New(Config{Seats: 600})
	const all = "system:authenticated"
	for _, row := range []struct{ user, groups, verb, what, want string }{
		{"admin", "system:masters," + all, "delete", ":pods:x", "exempt exempt"},
		{"system:anonymous", "system:unauthenticated", "get", "/livez", "probes exempt"},
		{"system:anonymous", "system:unauthenticated", "get", "/readyz/etcd", "probes exempt"},
		{"system:anonymous", "system:unauthenticated", "get", "/version", "global-default global-default"},
		{"system:kube-scheduler", all, "update", "coordination.k8s.io:leases:kube-system", "system-leader-election leader-election"},
		{"system:kube-scheduler", all, "create", ":pods/binding:x", "kube-scheduler workload-high"},
		{"system:node:n1", "system:nodes," + all, "patch", ":nodes/status", "system-node-high node-high"},
		{"system:node:n1", "system:nodes," + all, "update", "coordination.k8s.io:leases:kube-node-lease", "system-node-high node-high"},
		{"system:node:n1", "system:nodes," + all, "get", ":pods:x", "system-nodes system"},
		{"system:serviceaccount:kube-system:job-controller", "system:serviceaccounts," + all, "list", "batch:jobs:x", "kube-system-service-accounts workload-high"},
		{"system:serviceaccount:kube-systemic:a", "system:serviceaccounts," + all, "list", "batch:jobs:x", "service-accounts workload-low"},
		{"jane", all, "list", ":pods", "global-default global-default"},
		{"nobody", "", "list", ":pods", "catch-all catch-all"},
	} {
		f := classify(c.plan.Load().flows, asks(row.user, row.groups, row.verb, row.what))
		if got := f.name + " " + f.level.name; got != row.want {
			t.Errorf("%s %s %s: %s, want %s", row.user, row.verb, row.what, got, row.want)
		}
	}
}

// only is a Controller with one level for everybody.
func only(seats int, by flowcontrolv1.FlowDistinguisherMethodType, l flowcontrolv1.LimitedPriorityLevelConfiguration) *Controller {
	shares := int32(100)
	l.NominalConcurrencyShares = &shares
	none := int32(0)
	c := New(Config{Seats: seats, Wait: time.Minute})
	c.digest([]*flowcontrolv1.FlowSchema{{
		ObjectMeta: metav1.ObjectMeta{Name: "all", UID: "flow-uid"},
		Spec: flowcontrolv1.FlowSchemaSpec{
			MatchingPrecedence: 5, PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: "one"},
			DistinguisherMethod: &flowcontrolv1.FlowDistinguisherMethod{Type: by},
			Rules: []flowcontrolv1.PolicyRulesWithSubjects{{
				Subjects:      []flowcontrolv1.Subject{{Kind: flowcontrolv1.SubjectKindUser, User: &flowcontrolv1.UserSubject{Name: "*"}}},
				ResourceRules: []flowcontrolv1.ResourcePolicyRule{{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}, Namespaces: []string{"*"}, ClusterScope: true}},
			}},
		},
	}}, []*flowcontrolv1.PriorityLevelConfiguration{
		{ObjectMeta: metav1.ObjectMeta{Name: "one", UID: "level-uid"}, Spec: flowcontrolv1.PriorityLevelConfigurationSpec{Type: flowcontrolv1.PriorityLevelEnablementLimited, Limited: &l}},
		{ObjectMeta: metav1.ObjectMeta{Name: "catch-all"}, Spec: flowcontrolv1.PriorityLevelConfigurationSpec{
			Type:    flowcontrolv1.PriorityLevelEnablementLimited,
			Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{NominalConcurrencyShares: &none, LimitResponse: flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject}},
		}},
	})
	return c
}

func queues(n, hand, length int32) flowcontrolv1.LimitedPriorityLevelConfiguration {
	return flowcontrolv1.LimitedPriorityLevelConfiguration{LimitResponse: flowcontrolv1.LimitResponse{
		Type: flowcontrolv1.LimitResponseTypeQueue, Queuing: &flowcontrolv1.QueuingConfiguration{Queues: n, HandSize: hand, QueueLengthLimit: length},
	}}
}

func TestRejectWhenFull(t *testing.T) {
	c := only(1, flowcontrolv1.FlowDistinguisherMethodByUserType, flowcontrolv1.LimitedPriorityLevelConfiguration{LimitResponse: flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject}})
	h := http.Header{}
	seat, err := c.Enter(context.Background(), asks("a", "", "get", ":pods:x"), h)
	if err != nil || h.Get("X-Kubernetes-PF-FlowSchema-UID") != "flow-uid" || h.Get("X-Kubernetes-PF-PriorityLevel-UID") != "level-uid" {
		t.Fatalf("first: %v, headers %v", err, h)
	}
	if _, err := c.Enter(context.Background(), asks("a", "", "get", ":pods:x"), h); !errors.Is(err, ErrTooMany) {
		t.Errorf("second: %v", err)
	}
	seat.Leave()
	if _, err := c.Enter(context.Background(), asks("a", "", "get", ":pods:x"), h); err != nil {
		t.Errorf("after one has left: %v", err)
	}
}

// A greedy flow fills its own queues; the modest one's single request is next but one.
func TestFlowsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := only(1, flowcontrolv1.FlowDistinguisherMethodByUserType, queues(64, 1, 100))
		first, err := c.Enter(t.Context(), asks("first", "", "get", ":pods:x"), http.Header{})
		if err != nil {
			t.Fatal(err)
		}
		var order []string
		wait := func(user string) {
			go func() {
				seat, err := c.Enter(t.Context(), asks(user, "", "get", ":pods:x"), http.Header{})
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, user)
				time.Sleep(time.Second) // of the fake clock: served meanwhile
				seat.Leave()
			}()
			synctest.Wait()
		}
		for range 20 {
			wait("greedy")
		}
		wait("modest")
		if got := c.Levels()["one"]; got != [2]int{1, 21} {
			t.Errorf("busy and waiting: %v", got)
		}
		first.Leave()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if at := slices.Index(order, "modest"); at < 0 || at > 1 || len(order) != 21 {
			t.Errorf("served in the order %v", order)
		}
		if got := c.Levels()["one"]; got != [2]int{} {
			t.Errorf("at the end, busy and waiting: %v", got)
		}
	})
}

func TestQueueIsBoundedAndWaitingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := only(1, "", queues(1, 1, 2))
		seat, err := c.Enter(t.Context(), asks("a", "", "get", ":pods:x"), http.Header{})
		if err != nil {
			t.Fatal(err)
		}
		results := make(chan error, 3)
		enter := func(ctx context.Context) {
			go func() {
				_, err := c.Enter(ctx, asks("a", "", "get", ":pods:x"), http.Header{})
				results <- err
			}()
			synctest.Wait()
		}
		gone, cancel := context.WithCancelCause(t.Context())
		enter(t.Context())
		enter(gone)
		enter(t.Context())
		if err := <-results; !errors.Is(err, ErrTooMany) {
			t.Errorf("one too many: %v", err)
		}
		why := errors.New("the client has gone")
		cancel(why)
		if err := <-results; !errors.Is(err, why) {
			t.Errorf("who gives up: %v", err)
		}
		started := time.Now()
		if err := <-results; !errors.Is(err, ErrTooMany) || time.Since(started) != time.Minute {
			t.Errorf("who waits too long: %v after %s", err, time.Since(started))
		}
		seat.Leave()
		if got := c.Levels()["one"]; got != [2]int{} {
			t.Errorf("at the end, busy and waiting: %v", got)
		}
	})
}

func TestDealIsDistinct(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		queues := rapid.IntRange(1, 512).Draw(t, "queues")
		hand := rapid.IntRange(1, 10).Draw(t, "hand")
		got := deal(rapid.Uint64().Draw(t, "hash"), queues, hand, nil)
		if len(got) != min(hand, queues) {
			t.Fatalf("%d cards", len(got))
		}
		for i, c := range got {
			if c < 0 || c >= queues || slices.Contains(got[:i], c) {
				t.Fatalf("hand %v of %d", got, queues)
			}
		}
	})
}

func TestAllocateKeepsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "levels")
		asks := make([]ask, n)
		least := 0
		for i := range asks {
			asks[i].least = rapid.IntRange(0, 50).Draw(t, "least")
			asks[i].most = asks[i].least + rapid.IntRange(0, 600).Draw(t, "more")
			asks[i].demand = rapid.Float64Range(0, 1000).Draw(t, "demand")
			least += asks[i].least
		}
		seats := least + rapid.IntRange(0, 300).Draw(t, "seats")
		total := 0
		for i, got := range allocate(seats, asks) {
			if got < asks[i].least || got > asks[i].most {
				t.Fatalf("level %d of %v has %d", i, asks, got)
			}
			total += got
		}
		if total > seats+n {
			t.Fatalf("%d seats became %d: %v", seats, total, asks)
		}
	})
}

// An idle level lends to one that is asked for much, and has its seats back when it is asked itself.
func TestLending(t *testing.T) {
	lender, busy := ask{least: 10, most: 1000, demand: 0}, ask{least: 20, most: 1000, demand: 500}
	got := allocate(120, []ask{lender, busy})
	if got[0] != 10 || got[1] < 105 {
		t.Errorf("idle beside busy: %v", got)
	}
	lender.demand = 500
	if got = allocate(120, []ask{lender, busy}); got[0] < 55 || got[1] < 55 {
		t.Errorf("both busy: %v", got)
	}
}

func TestDecideKeepsDefaults(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	steps := Decide(nil, nil, now)
	if len(steps) != len(defaults()) {
		t.Fatalf("a new cluster: %v", steps)
	}
	var flows []*flowcontrolv1.FlowSchema
	var levels []*flowcontrolv1.PriorityLevelConfiguration
	for _, d := range defaults() {
		if d.flow != nil {
			d.flow.Generation = 1
			flows = append(flows, d.flow)
		} else {
			d.level.Generation = 1
			levels = append(levels, d.level)
		}
	}
	for _, f := range flows {
		c := dangling(f, true, now)
		f.Status.Conditions = []flowcontrolv1.FlowSchemaCondition{*c}
	}
	if steps = Decide(flows, levels, now); len(steps) != 0 {
		t.Errorf("all is as it should be: %v", steps)
	}
	find := func(name string) *flowcontrolv1.FlowSchema {
		return flows[slices.IndexFunc(flows, func(f *flowcontrolv1.FlowSchema) bool { return f.Name == name })]
	}
	find("catch-all").Spec.MatchingPrecedence = 9000 // a mandatory one is put right whatever it says
	find("catch-all").Annotations[flowcontrolv1.AutoUpdateAnnotationKey] = "false"
	find("service-accounts").Spec.MatchingPrecedence = 7 // this one is the administrator's
	find("service-accounts").Annotations[flowcontrolv1.AutoUpdateAnnotationKey] = "false"
	find("probes").Spec.MatchingPrecedence = 7
	old := &flowcontrolv1.FlowSchema{ObjectMeta: own("of-an-older-version")}
	mine := &flowcontrolv1.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Spec: flowcontrolv1.FlowSchemaSpec{PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: "nowhere"}}}
	got := fmt.Sprint(Decide(append(flows, old, mine), levels, now))
	if want := "[update flowschemas catch-all update flowschemas probes delete flowschemas of-an-older-version status flowschemas mine]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// What is served, how long it took and what waits is shown under upstream's names.
func TestMetrics(t *testing.T) {
	synctest.Test(t, testMetrics)
}

func testMetrics(t *testing.T) {
	c := only(1, "", queues(1, 1, 5))
	reg := prometheus.NewRegistry()
	reg.MustRegister(c)
	enter := func(verb string) Ticket {
		seat, err := c.Enter(t.Context(), asks("jane", "system:authenticated", verb, ":pods:default"), http.Header{})
		if err != nil {
			t.Error(err)
		}
		return seat
	}
	enter("watch").Leave()
	seat := enter("list")
	done := make(chan struct{})
	go func() { defer close(done); enter("create").Leave() }()
	shown := func(want string) bool {
		w := httptest.NewRecorder()
		promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return strings.Contains(w.Body.String(), want+"\n")
	}
	synctest.Wait()
	if !shown(`apiserver_current_inqueue_requests{request_kind="mutating"} 1`) || !shown(`apiserver_current_inqueue_requests{request_kind="readOnly"} 0`) {
		t.Error("not one creation waits, or somebody else")
	}
	time.AfterFunc(30*time.Millisecond, seat.Leave) // of the fake clock: the creation has waited
	<-done
	synctest.Wait()
	for _, want := range []string{
		`apiserver_flowcontrol_request_execution_seconds_count{flow_schema="all",priority_level="one",type="regular"} 2`,
		`apiserver_flowcontrol_request_execution_seconds_count{flow_schema="all",priority_level="one",type="watch"} 1`,
		`apiserver_flowcontrol_request_wait_duration_seconds_bucket{execute="true",flow_schema="all",priority_level="one",le="0"} 2`,
		`apiserver_flowcontrol_request_wait_duration_seconds_count{execute="true",flow_schema="all",priority_level="one"} 3`,
		`apiserver_flowcontrol_work_estimated_seats_bucket{flow_schema="all",priority_level="one",le="1"} 3`,
		`apiserver_flowcontrol_current_inqueue_seats{flow_schema="all",priority_level="one"} 0`,
	} {
		if !shown(want) {
			t.Errorf("not shown: %s", want)
		}
	}
}

// Finding a free seat must cost far less than serving anything: below a microsecond.
func BenchmarkEnter(b *testing.B) {
	c := New(Config{Seats: 600, Wait: time.Minute})
	a := asks("system:serviceaccount:default:a", "system:serviceaccounts,system:serviceaccounts:default,system:authenticated", "get", ":pods:default")
	h := http.Header{}
	b.ReportAllocs()
	for b.Loop() {
		seat, err := c.Enter(context.Background(), a, h)
		if err != nil {
			b.Fatal(err)
		}
		seat.Leave()
	}
}
