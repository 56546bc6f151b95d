package watchcache

import (
	"context"
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"pgregory.net/rapid"

	"github.com/keelson/keelson/apiserver/codec"
	"github.com/keelson/keelson/apiserver/resources"
	"github.com/keelson/keelson/apiserver/store"
	"github.com/keelson/keelson/apiserver/store/memory"
)

func testRegistry(t interface{ Fatal(...any) }) *resources.Registry {
	pods := resources.Resource[corev1.Pod]{
		Version: "v1", Kind: "Pod", Plural: "pods", List: func() runtime.Object { return &corev1.PodList{} },
		Fields: func(p *corev1.Pod) fields.Set {
			return fields.Set{"spec.nodeName": p.Spec.NodeName, "status.phase": string(p.Status.Phase)}
		},
		FieldNames: []string{"spec.nodeName", "status.phase"},
	}.Row()
	namespaces := resources.Resource[corev1.Namespace]{
		Version: "v1", Kind: "Namespace", Plural: "namespaces", Scope: resources.Cluster,
		List: func() runtime.Object { return &corev1.NamespaceList{} },
	}.Row()
	reg, err := resources.NewRegistry([]*resources.Row{pods, namespaces})
	if err != nil {
		t.Fatal(err)
	}
	return reg
}

// twin is the slow and obvious version: every state that ever was, in full.
type twin struct {
	revs   []int64
	states []map[string]*corev1.Pod // by key, after revs[i]
}

func (tw *twin) record(rev int64, change func(map[string]*corev1.Pod)) {
	next := map[string]*corev1.Pod{}
	if n := len(tw.states); n > 0 {
		for k, v := range tw.states[n-1] {
			next[k] = v
		}
	}
	change(next)
	tw.revs = append(tw.revs, rev)
	tw.states = append(tw.states, next)
}

func sees(sel Selection, key string, p *corev1.Pod) bool {
	if p == nil || (sel.Namespace != "" && p.Namespace != sel.Namespace) || (sel.Name != "" && p.Name != sel.Name) {
		return false
	}
	set := fields.Set{
		"metadata.name": p.Name, "metadata.namespace": p.Namespace,
		"spec.nodeName": p.Spec.NodeName, "status.phase": string(p.Status.Phase),
	}
	return (sel.Labels == nil || sel.Labels.Matches(labels.Set(p.Labels))) && (sel.Fields == nil || sel.Fields.Matches(set))
}

func (tw *twin) at(rev int64) map[string]*corev1.Pod {
	i := sort.Search(len(tw.revs), func(i int) bool { return tw.revs[i] > rev }) - 1
	return tw.states[i]
}

// list is what a selection shows at a revision: "key@rev", in key order.
func (tw *twin) list(sel Selection, rev int64) []string {
	var keys, out []string
	state := tw.at(rev)
	for key, p := range state {
		if sees(sel, key, p) {
			keys = append(keys, key)
		}
	}
	sort.Strings(keys)
	for _, key := range keys {
		out = append(out, key+"@"+state[key].ResourceVersion)
	}
	return out
}

// events is what a watch of sel shows after from, up to rev.
func (tw *twin) events(sel Selection, from int64) []string {
	var out []string
	for i, rev := range tw.revs {
		if rev <= from || i == 0 {
			continue
		}
		was, is := tw.states[i-1], tw.states[i]
		keys := map[string]bool{}
		for k := range was {
			keys[k] = true
		}
		for k := range is {
			keys[k] = true
		}
		for k := range keys {
			if was[k] == is[k] {
				continue
			}
			switch before, now := sees(sel, k, was[k]), sees(sel, k, is[k]); {
			case before && now:
				out = append(out, fmt.Sprintf("%d modified %s", rev, k))
			case now:
				out = append(out, fmt.Sprintf("%d added %s", rev, k))
			case before:
				out = append(out, fmt.Sprintf("%d deleted %s", rev, k))
			}
		}
	}
	return out
}

var selections = map[string]Selection{
	"all":            {},
	"namespace a":    {Namespace: "a"},
	"one pod":        {Namespace: "a", Name: "p1"},
	"name anywhere":  {Fields: fields.ParseSelectorOrDie("metadata.name=p1")},
	"label":          {Labels: labels.SelectorFromSet(labels.Set{"app": "x"})},
	"label in a":     {Namespace: "a", Labels: labels.SelectorFromSet(labels.Set{"app": "x"})},
	"two labels":     {Labels: labels.SelectorFromSet(labels.Set{"app": "x", "tier": "front"})},
	"label, not two": {Labels: mustParse("app in (y),tier!=front")},
	"node n1":        {Fields: fields.ParseSelectorOrDie("spec.nodeName=n1")},
	"node n1 in a":   {Namespace: "a", Fields: fields.ParseSelectorOrDie("spec.nodeName=n1")},
	"no node":        {Fields: fields.ParseSelectorOrDie("spec.nodeName=")},
	"running not n2": {Fields: fields.ParseSelectorOrDie("status.phase=Running,spec.nodeName!=n2")},
}

func mustParse(s string) labels.Selector {
	sel, err := labels.Parse(s)
	if err != nil {
		panic(err)
	}
	return sel
}

func selection(name string) Selection {
	s := selections[name]
	s.Prefix, s.Namespaced = "pods", true
	return s
}

// The cache and its twin answer alike: lists now and in the past, watches from
// any revision of the log with readers of any speed, through compaction and a store
// that goes away.
func TestTwin(t *testing.T) {
	var names []string
	for n := range selections {
		names = append(names, n)
	}
	sort.Strings(names)
	rapid.Check(t, func(rt *rapid.T) {
		reg := testRegistry(rt)
		pods := reg.Lookup("", "v1", "pods")
		st := memory.New()
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		c := New(st, reg, Options{LogEvents: rapid.SampledFrom([]int{5, 1000}).Draw(rt, "log")})
		go func() { ended <- c.Run(ctx) }()
		defer func() { cancel(); <-ended }()
		<-c.Ready()

		tw := &twin{}
		tw.record(1, func(map[string]*corev1.Pod) {})
		type follower struct {
			name string
			cu   *Cursor
			from int64
			got  []string
			dead bool
		}
		var followers []*follower
		bound, end := context.WithTimeout(ctx, 20*time.Second)
		defer end()

		drain := func(f *follower) {
			for !f.dead {
				evs, rev, err := f.cu.Next(bound, 0)
				if err != nil {
					if err != ErrSlow && err != ErrTooOld {
						rt.Fatalf("%s: %v", f.name, err)
					}
					f.dead = true
					return
				}
				for _, ev := range evs {
					f.got = append(f.got, fmt.Sprintf("%d %s %s", ev.Rev, []string{"added", "modified", "deleted"}[ev.Type], ev.Item.Key))
					obj, err := ev.Item.Object()
					if err != nil || obj.GetResourceVersion() != strconv.FormatInt(ev.Rev, 10) {
						rt.Fatalf("%s: event of %d carries %v, %v", f.name, ev.Rev, obj, err)
					}
				}
				if rev == c.Rev() {
					return
				}
			}
		}
		check := func(rev int64) {
			snap, err := c.SnapshotAt(rev)
			if err != nil {
				if err == ErrTooOld && rev < c.Rev() {
					return
				}
				rt.Fatalf("snapshot at %d of %d: %v", rev, c.Rev(), err)
			}
			for _, name := range names {
				var got []string
				snap.Scan(selection(name), "", func(it *Item) bool {
					got = append(got, fmt.Sprintf("%s@%d", it.Key, it.Rev))
					return true
				})
				if want := tw.list(selection(name), rev); strings.Join(got, " ") != strings.Join(want, " ") {
					rt.Fatalf("list %q at %d:\ngot  %v\nwant %v", name, rev, got, want)
				}
				// In pages it is the same.
				var paged []string
				for after := ""; ; {
					n := 0
					snap.Scan(selection(name), after, func(it *Item) bool {
						paged = append(paged, fmt.Sprintf("%s@%d", it.Key, it.Rev))
						after = it.Key
						n++
						return n < 2
					})
					if n == 0 {
						break
					}
				}
				if !reflect.DeepEqual(paged, got) {
					rt.Fatalf("list %q in pages: %v, at once: %v", name, paged, got)
				}
			}
		}

		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
					Namespace: rapid.SampledFrom([]string{"a", "b", "ab"}).Draw(rt, "namespace"),
					Name:      rapid.SampledFrom([]string{"p1", "p2", "p"}).Draw(rt, "name"),
				}}
				key := pods.Key(p.Namespace, p.Name)
				old, _ := st.Get(ctx, key)
				if old != nil && rapid.IntRange(0, 3).Draw(rt, "delete") == 0 {
					rev, err := st.Delete(ctx, key, old.ModRev)
					if err != nil {
						rt.Fatal(err)
					}
					tw.record(rev, func(m map[string]*corev1.Pod) { delete(m, key) })
					return
				}
				p.Spec.NodeName = rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(rt, "node")
				p.Status.Phase = rapid.SampledFrom([]corev1.PodPhase{"Running", "Pending"}).Draw(rt, "phase")
				if app := rapid.SampledFrom([]string{"", "x", "y"}).Draw(rt, "app"); app != "" {
					p.Labels = map[string]string{"app": app}
					if rapid.Bool().Draw(rt, "front") {
						p.Labels["tier"] = "front"
					}
				}
				value, _, err := codec.Value(pods, p)
				if err != nil {
					rt.Fatal(err)
				}
				var seen int64
				if old != nil {
					seen = old.ModRev
				}
				rev, err := st.Put(ctx, key, value, seen, 0)
				if err != nil {
					rt.Fatal(err)
				}
				p.ResourceVersion = strconv.FormatInt(rev, 10)
				tw.record(rev, func(m map[string]*corev1.Pod) { m[key] = p })
			},
			"list": func(rt *rapid.T) {
				rev, err := c.Fresh(bound)
				if err != nil {
					rt.Fatal(err)
				}
				if last := tw.revs[len(tw.revs)-1]; rev != last {
					rt.Fatalf("fresh is %d, last write was %d", rev, last)
				}
				check(c.Rev())
				check(rapid.SampledFrom(tw.revs).Draw(rt, "past"))
			},
			"follow": func(rt *rapid.T) {
				name := rapid.SampledFrom(names).Draw(rt, "selection")
				from := rapid.SampledFrom(tw.revs).Draw(rt, "from")
				if err := c.WaitFor(bound, from); err != nil {
					rt.Fatal(err)
				}
				cu, err := c.Watch(selection(name), from)
				if err == ErrTooOld {
					return
				}
				if err != nil {
					rt.Fatal(err)
				}
				followers = append(followers, &follower{name: name, cu: cu, from: from})
			},
			"list and follow": func(rt *rapid.T) {
				name := rapid.SampledFrom(names).Draw(rt, "selection")
				snap, cu, err := c.ListAndWatch(selection(name))
				if err != nil {
					rt.Fatal(err)
				}
				followers = append(followers, &follower{name: name, cu: cu, from: snap.Rev()})
			},
			"drain": func(rt *rapid.T) {
				if len(followers) > 0 {
					drain(rapid.SampledFrom(followers).Draw(rt, "follower"))
				}
			},
			"leave": func(rt *rapid.T) {
				if n := len(followers); n > 0 {
					followers[n-1].cu.Close()
					followers[n-1].dead = true
				}
			},
			"pack": func(rt *rapid.T) {
				if _, err := c.Fresh(ctx); err != nil { // nothing is superseded while it is counted
					rt.Fatal(err)
				}
				c.Pack()
				c.mu.Lock()
				defer c.mu.Unlock()
				live := map[*slab]int64{}
				c.state.keys.Scan(func(it *Item) bool {
					if b := it.body.Load(); b.slab != nil {
						live[b.slab] += int64(len(b.raw))
					}
					return true
				})
				for s, n := range live {
					if s.live.Load() != n || s.sparse() {
						rt.Fatalf("a slab of %d bytes counts %d live, want %d, and none is left half empty", s.size, s.live.Load(), n)
					}
				}
			},
			"compact": func(rt *rapid.T) {
				_ = st.Compact(ctx, rapid.SampledFrom(tw.revs).Draw(rt, "compact"))
			},
		})
		if _, err := c.Fresh(bound); err != nil {
			rt.Fatal(err)
		}
		for _, f := range followers {
			drain(f)
			want := tw.events(selection(f.name), f.from)
			if f.dead && len(f.got) <= len(want) {
				want = want[:len(f.got)]
			}
			if !reflect.DeepEqual(f.got, want) && len(f.got)+len(want) > 0 {
				rt.Fatalf("watch %q from %d:\ngot  %q\nwant %q", f.name, f.from, f.got, want)
			}
			f.cu.Close()
		}
		if n := len(c.topics); n != 0 {
			rt.Fatalf("%d topics are left behind", n)
		}
	})
}

// A store that has compacted what the cache has not seen makes it load again:
// cursors end, the state is right.
func TestJump(t *testing.T) {
	reg := testRegistry(t)
	pods := reg.Lookup("", "v1", "pods")
	st := memory.New()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c := New(st, reg, Options{})
	ended := make(chan error, 1)
	running, stop := context.WithCancel(ctx)
	go func() { ended <- c.Run(running) }()
	defer func() { stop(); <-ended }()
	<-c.Ready()
	_, cu, err := c.ListAndWatch(selection("all"))
	if err != nil {
		t.Fatal(err)
	}
	st.Fail(func(call, _ string) error {
		if call == "watch" {
			return fmt.Errorf("the store is away")
		}
		return nil
	})
	value, _, err := codec.Value(pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}})
	if err != nil {
		t.Fatal(err)
	}
	var rev int64
	for i := range 3 {
		if rev, err = st.Put(ctx, fmt.Sprintf("pods/a/p%d", i), value, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.Compact(ctx, rev); err != nil {
		t.Fatal(err)
	}
	st.Fail(nil)
	if err := c.WaitFor(ctx, rev); err != nil {
		t.Fatal(err)
	}
	if n := c.Snapshot().Count("pods", "", ""); n != 3 {
		t.Fatalf("%d pods after the jump, want 3", n)
	}
	if _, _, err := cu.Next(ctx, time.Second); err != ErrTooOld {
		t.Fatalf("cursor got %v, want ErrTooOld", err)
	}
	if _, err := c.Watch(selection("all"), rev-1); err != ErrTooOld {
		t.Fatalf("watch from before the jump got %v, want ErrTooOld", err)
	}
}

// loaded returns a cache that has read st, and follows it until the test ends.
func loaded(t *testing.T, ctx context.Context, st store.Store, reg *resources.Registry) *Cache {
	t.Helper()
	c := New(st, reg, Options{})
	ended := make(chan error, 1)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	go func() { ended <- c.Run(running) }()
	t.Cleanup(func() { stop(); <-ended })
	select {
	case <-c.Ready():
	case <-ctx.Done():
		t.Fatal("the cache has not read the store in time")
	}
	return c
}

// Objects of a kind that is not served yet are kept, and appear with their row.
func TestRowArrives(t *testing.T) {
	reg := testRegistry(t)
	rows := reg.All()
	pods := reg.Lookup("", "v1", "pods")
	if err := reg.Replace(nil); err != nil {
		t.Fatal(err)
	}
	st := memory.New()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	value, _, err := codec.Value(pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Put(ctx, "pods/a/p", value, 0, 0); err != nil {
		t.Fatal(err)
	}
	c := loaded(t, ctx, st, reg)
	if it := c.Snapshot().Get("pods/a/p"); it != nil {
		t.Fatalf("served without a row: %+v", it)
	}
	if err := reg.Replace(rows); err != nil {
		t.Fatal(err)
	}
	c.Refresh()
	it := c.Snapshot().Get("pods/a/p")
	if it == nil || it.Head().Name != "p" {
		t.Fatalf("got %+v", it)
	}
	if _, err := st.Delete(ctx, "pods/a/p", it.Rev); err != nil {
		t.Fatal(err)
	}
}

// What upstream has stored is completed when it is read, and what this server stores is not looked at again.
func TestForeignValuesAreCompleted(t *testing.T) {
	asked := 0
	claims := resources.Resource[corev1.PersistentVolumeClaim]{
		Version: "v1", Kind: "PersistentVolumeClaim", Plural: "persistentvolumeclaims", List: func() runtime.Object { return &corev1.PersistentVolumeClaimList{} },
		Default: func(c *corev1.PersistentVolumeClaim) { asked++; c.Status.Phase = corev1.ClaimPending },
	}.Row()
	reg, err := resources.NewRegistry([]*resources.Row{claims})
	if err != nil {
		t.Fatal(err)
	}
	st := memory.New()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for name, tail := range map[string]string{"own": "", "upstreams": "\x1a\x00\x22\x00"} {
		value, _, err := codec.Value(claims, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Put(ctx, "persistentvolumeclaims/a/"+name, append(value, tail...), 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	c := loaded(t, ctx, st, reg)
	for name, phase := range map[string]corev1.PersistentVolumeClaimPhase{"own": "", "upstreams": corev1.ClaimPending} {
		it := c.Snapshot().Get("persistentvolumeclaims/a/" + name)
		if it == nil {
			t.Fatalf("%s is not there", name)
		}
		obj, err := it.Object()
		if err != nil {
			t.Fatal(err)
		}
		if got := obj.(*corev1.PersistentVolumeClaim).Status.Phase; got != phase {
			t.Errorf("%s: phase %q, want %q", name, got, phase)
		}
	}
	if asked != 1 {
		t.Errorf("defaults were asked for %d times, want once", asked)
	}
}

var _ store.Store = (*memory.Store)(nil)
