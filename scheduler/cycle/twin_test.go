package cycle_test

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"

	"github.com/keelson/keelson/libs/testkit"
	"github.com/keelson/keelson/scheduler/cache"
	"github.com/keelson/keelson/scheduler/cycle"
	"github.com/keelson/keelson/scheduler/framework"
	"github.com/keelson/keelson/scheduler/plugins"
)

// naive decides by scanning every pod for every node, straight from the API's words. It knows CPU, node
// selectors, required (anti-)affinity and hard spread constraints.
func naive(nodes []*corev1.Node, placed []*corev1.Pod, p *corev1.Pod) map[string]bool {
	byName := map[string]*corev1.Node{}
	for _, n := range nodes {
		byName[n.Name] = n
	}
	selects := func(t corev1.PodAffinityTerm, owner, other *corev1.Pod) bool {
		sel, err := metav1.LabelSelectorAsSelector(t.LabelSelector)
		return err == nil && owner.Namespace == other.Namespace && sel.Matches(labels.Set(other.Labels))
	}
	together := func(key string, a, b *corev1.Node) bool {
		va, ok := a.Labels[key]
		vb, ok2 := b.Labels[key]
		return ok && ok2 && va == vb
	}
	affinityTerms := func(p *corev1.Pod) (near, away []corev1.PodAffinityTerm) {
		if a := p.Spec.Affinity; a != nil {
			if a.PodAffinity != nil {
				near = a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution
			}
			if a.PodAntiAffinity != nil {
				away = a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
			}
		}
		return near, away
	}
	matchesSelector := func(n *corev1.Node) bool {
		return labels.Set(p.Spec.NodeSelector).AsSelector().Matches(labels.Set(n.Labels))
	}
	cpu := func(p *corev1.Pod) int64 { return p.Spec.Containers[0].Resources.Requests.Cpu().MilliValue() }
	near, away := affinityTerms(p)
	fits := func(n *corev1.Node) bool {
		used, count := cpu(p), int64(1)
		for _, q := range placed {
			if q.Spec.NodeName == n.Name {
				used += cpu(q)
				count++
			}
		}
		if used > n.Status.Allocatable.Cpu().MilliValue() && cpu(p) > 0 || count > n.Status.Allocatable.Pods().Value() || !matchesSelector(n) {
			return false
		}
		for _, t := range near {
			if _, ok := n.Labels[t.TopologyKey]; !ok {
				return false
			}
			found, anywhere := false, false
			for _, q := range placed {
				all := true
				for _, u := range near {
					all = all && selects(u, p, q)
				}
				if all {
					for _, u := range near {
						_, ok := byName[q.Spec.NodeName].Labels[u.TopologyKey]
						anywhere = anywhere || ok
					}
					found = found || together(t.TopologyKey, n, byName[q.Spec.NodeName])
				}
			}
			self := true
			for _, u := range near {
				self = self && selects(u, p, p)
			}
			if !found && (anywhere || !self) {
				return false
			}
		}
		for _, q := range placed {
			for _, t := range away {
				if selects(t, p, q) && together(t.TopologyKey, n, byName[q.Spec.NodeName]) {
					return false
				}
			}
			_, theirs := affinityTerms(q)
			for _, t := range theirs {
				if selects(t, q, p) && together(t.TopologyKey, n, byName[q.Spec.NodeName]) {
					return false
				}
			}
		}
		for _, c := range p.Spec.TopologySpreadConstraints {
			sel, err := metav1.LabelSelectorAsSelector(c.LabelSelector)
			if err != nil {
				return false
			}
			counts := map[string]int{}
			for _, m := range nodes {
				eligible := matchesSelector(m)
				for _, other := range p.Spec.TopologySpreadConstraints {
					_, ok := m.Labels[other.TopologyKey]
					eligible = eligible && ok
				}
				if !eligible {
					continue
				}
				v := m.Labels[c.TopologyKey]
				counts[v] += 0
				for _, q := range placed {
					if q.Spec.NodeName == m.Name && q.Namespace == p.Namespace && q.DeletionTimestamp == nil && sel.Matches(labels.Set(q.Labels)) {
						counts[v]++
					}
				}
			}
			v, ok := n.Labels[c.TopologyKey]
			if !ok {
				return false
			}
			least := -1
			for _, k := range counts {
				if least < 0 || k < least {
					least = k
				}
			}
			self := 0
			if sel.Matches(labels.Set(p.Labels)) {
				self = 1
			}
			if counts[v]+self-max(least, 0) > int(c.MaxSkew) {
				return false
			}
		}
		return true
	}
	out := map[string]bool{}
	for _, n := range nodes {
		if fits(n) {
			out[n.Name] = true
		}
	}
	return out
}

// TestCountsAgreeWithATwin changes a cluster at random and compares every decision with the naive one.
func TestCountsAgreeWithATwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := cache.New()
		d := cycle.New(plugins.Table, args)
		nodes := map[string]*corev1.Node{}
		placed := map[string]*corev1.Pod{}
		app := func(name string) string { return "app=" + rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, name) }
		key := func(name string) string { return rapid.SampledFrom([]string{host, inZone}).Draw(t, name) }
		randomPod := func(name string) *corev1.Pod {
			opts := []podOption{testkit.WithLabels(app("labels")), testkit.Requests(fmt.Sprintf("cpu=%dm", rapid.SampledFrom([]int{0, 100, 1500}).Draw(t, "cpu")))}
			if rapid.IntRange(0, 3).Draw(t, "near") == 0 {
				opts = append(opts, near(key("near key"), app("near app")))
			}
			if rapid.IntRange(0, 3).Draw(t, "away") == 0 {
				opts = append(opts, away(key("away key"), app("away app")))
			}
			if rapid.IntRange(0, 2).Draw(t, "spread") == 0 {
				for range rapid.IntRange(1, 2).Draw(t, "constraints") {
					opts = append(opts, spread(int32(rapid.IntRange(1, 2).Draw(t, "skew")), key("spread key"), app("spread app"), corev1.DoNotSchedule))
				}
			}
			if rapid.IntRange(0, 4).Draw(t, "selector") == 0 {
				opts = append(opts, selectNode("disk=ssd"))
			}
			return testkit.Pod(name, opts...)
		}
		list := func() (ns []*corev1.Node, ps []*corev1.Pod) {
			for _, n := range nodes {
				ns = append(ns, n)
			}
			for _, p := range placed {
				if nodes[p.Spec.NodeName] != nil {
					ps = append(ps, p)
				}
			}
			return ns, ps
		}
		for step := range rapid.IntRange(5, 60).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"node", "node gone", "place", "place", "place", "place", "remove", "leave", "relabel"}).Draw(t, "what") {
			case "node":
				name := fmt.Sprintf("n%d", rapid.IntRange(0, 7).Draw(t, "node"))
				var opts []testkit.NodeOption
				if z := rapid.SampledFrom([]string{"", "x", "y", "z"}).Draw(t, "zone"); z != "" {
					opts = append(opts, zone(z))
				}
				if rapid.Bool().Draw(t, "ssd") {
					opts = append(opts, testkit.NodeLabels("disk=ssd"))
				}
				nodes[name] = testkit.Node(name, opts...)
				c.SetNode(nodes[name])
			case "node gone":
				name := fmt.Sprintf("n%d", rapid.IntRange(0, 7).Draw(t, "node"))
				delete(nodes, name)
				c.RemoveNode(name)
			case "remove":
				for name, p := range placed {
					delete(placed, name)
					c.RemovePod(p.UID)
					break
				}
			case "leave":
				for name, p := range placed {
					p = p.DeepCopy()
					at := metav1.Unix(1, 0)
					p.DeletionTimestamp = &at
					placed[name] = p
					c.SetPod(framework.NewPod(p))
					break
				}
			case "relabel":
				for name, p := range placed {
					p = p.DeepCopy()
					p.Labels = testkit.Labels(app("new labels"))
					placed[name] = p
					c.SetPod(framework.NewPod(p))
					break
				}
			case "place":
				p := randomPod(fmt.Sprintf("p%d", step))
				ns, ps := list()
				want := naive(ns, ps, p)
				parsed := framework.NewPod(p)
				out := d.Decide(c.Snapshot(), parsed, uint64(step))
				if len(want) != out.Feasible {
					t.Fatalf("pod %+v\nthe twin finds %v, the cycle %d feasible nodes (%s)", p.Spec, want, out.Feasible, out.Message)
				}
				if out.Node == nil {
					continue
				}
				if !want[out.Node.Node.Name] {
					t.Fatalf("the cycle chose %s, the twin finds %v", out.Node.Node.Name, want)
				}
				assumed := c.Assume(parsed, out.Node.Node.Name)
				switch rapid.IntRange(0, 4).Draw(t, "bind") {
				case 0:
					c.Forget(p.UID)
				default:
					placed[p.Name] = assumed.Pod
					c.SetPod(framework.NewPod(assumed.Pod))
				}
			}
			if err := c.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	shapes := map[string]func(i int) []podOption{
		"plain": func(int) []podOption { return nil },
		"spread": func(int) []podOption {
			return []podOption{testkit.WithLabels("app=s"), spread(1, inZone, "app=s", corev1.DoNotSchedule)}
		},
		"antiaffinity": func(i int) []podOption {
			g := fmt.Sprintf("group=%d", i%10)
			return []podOption{testkit.WithLabels(g), away(host, g)}
		},
		"preferred": func(i int) []podOption {
			g := fmt.Sprintf("group=%d", i%10)
			return []podOption{testkit.WithLabels(g), change(func(p *corev1.Pod) {
				p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 50, PodAffinityTerm: term(host, g)}}},
					PodAffinity: &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 10, PodAffinityTerm: term(inZone, g)}}}}
			})}
		},
	}
	for name, shape := range shapes {
		b.Run(name+"/5000-nodes", func(b *testing.B) {
			c := cache.New()
			for i := range 5000 {
				c.SetNode(testkit.Node(fmt.Sprintf("n%d", i), zone(fmt.Sprintf("z%d", i%3)), testkit.Capacity("cpu=400,memory=3200Gi,pods=100000")))
			}
			d := cycle.New(plugins.Table, args)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				p := framework.NewPod(testkit.Pod(fmt.Sprintf("p%d", i), append(shape(i), testkit.Requests("cpu=1m,memory=1Mi"))...))
				out := d.Decide(c.Snapshot(), p, uint64(i))
				if out.Node == nil {
					b.Fatal(out.Message)
				}
				c.Assume(p, out.Node.Node.Name)
			}
		})
	}
}
