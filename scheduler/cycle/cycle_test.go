package cycle_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/libs/nodefeatures"
	"github.com/keelson/keelson/libs/testkit"
	"github.com/keelson/keelson/scheduler/cache"
	"github.com/keelson/keelson/scheduler/cycle"
	"github.com/keelson/keelson/scheduler/framework"
	"github.com/keelson/keelson/scheduler/plugins"
)

var args = framework.Args{HardPodAffinityWeight: 1, DefaultingType: "System"}

func zone(z string) testkit.NodeOption { return testkit.NodeLabels("topology.kubernetes.io/zone=" + z) }

type podOption = testkit.PodOption

func change(f func(*corev1.Pod)) podOption { return f }

func term(key, labels string) corev1.PodAffinityTerm {
	return corev1.PodAffinityTerm{TopologyKey: key, LabelSelector: testkit.Selector(labels)}
}

func near(key, labels string) podOption {
	return change(func(p *corev1.Pod) {
		if p.Spec.Affinity == nil {
			p.Spec.Affinity = &corev1.Affinity{}
		}
		p.Spec.Affinity.PodAffinity = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term(key, labels)}}
	})
}

func away(key, labels string) podOption {
	return change(func(p *corev1.Pod) {
		if p.Spec.Affinity == nil {
			p.Spec.Affinity = &corev1.Affinity{}
		}
		p.Spec.Affinity.PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term(key, labels)}}
	})
}

func spread(skew int32, key, labels string, when corev1.UnsatisfiableConstraintAction, more ...func(*corev1.TopologySpreadConstraint)) podOption {
	return change(func(p *corev1.Pod) {
		c := corev1.TopologySpreadConstraint{MaxSkew: skew, TopologyKey: key, WhenUnsatisfiable: when, LabelSelector: testkit.Selector(labels)}
		for _, m := range more {
			m(&c)
		}
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, c)
	})
}

func selectNode(labels string) podOption {
	return change(func(p *corev1.Pod) { p.Spec.NodeSelector = testkit.Labels(labels) })
}

func hostPort(n int32) podOption {
	return change(func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: n, ContainerPort: n}}
	})
}

func tolerate(key string) podOption {
	return change(func(p *corev1.Pod) {
		p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists})
	})
}

func restartsAll(p *corev1.Pod) {
	p.Spec.Containers[0].RestartPolicyRules = []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestartAllContainers}}
}

func declares(features ...string) testkit.NodeOption {
	return func(n *corev1.Node) { n.Status.DeclaredFeatures = features }
}

func claims(names ...string) podOption {
	return change(func(p *corev1.Pod) {
		for _, n := range names {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: n, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: n}}})
		}
	})
}

const (
	host   = corev1.LabelHostname
	inZone = corev1.LabelTopologyZone
)

// setUp puts nodes, pods with a node and other objects into a cache.
func setUp(objects ...any) *cache.Cache {
	c := cache.New()
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Node:
			c.SetNode(o)
		case *corev1.Pod:
			c.SetPod(framework.NewPod(o))
		case *corev1.Namespace:
			c.SetNamespace(o.Name, o.Labels)
		case *policyv1.PodDisruptionBudget:
			c.SetPDB(o)
		case *corev1.PersistentVolume:
			c.SetVolume(o)
		case *corev1.PersistentVolumeClaim:
			c.SetClaim(o)
		case *storagev1.StorageClass:
			c.SetClass(o)
		default:
			panic(fmt.Sprintf("%T", o))
		}
	}
	return c
}

func TestDecisions(t *testing.T) {
	soft, hard := corev1.ScheduleAnyway, corev1.DoNotSchedule
	three := func() []any {
		return []any{testkit.Node("a", zone("x")), testkit.Node("b", zone("x")), testkit.Node("c", zone("y"))}
	}
	with := func(more ...any) []any { return append(three(), more...) }
	for _, row := range []struct {
		name    string
		cluster []any
		pod     *corev1.Pod
		want    []string // nodes that may be chosen; none: refused
		message string
	}{
		{name: "an empty cluster", pod: testkit.Pod("p"), message: "no nodes available to schedule pods"},
		{name: "the emptiest node", cluster: with(testkit.Pod("1", testkit.On("a"), testkit.Requests("cpu=2,memory=8Gi")), testkit.Pod("2", testkit.On("b"), testkit.Requests("cpu=1,memory=4Gi"))),
			pod: testkit.Pod("p", testkit.Requests("cpu=1,memory=4Gi")), want: []string{"c"}},
		{name: "equal nodes", cluster: three(), pod: testkit.Pod("p"), want: []string{"a", "b", "c"}},
		{name: "too little of two resources", cluster: three(), pod: testkit.Pod("p", testkit.Requests("cpu=5,memory=64Gi")),
			message: "0/3 nodes are available: 3 Insufficient cpu, 3 Insufficient memory. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."},
		{name: "an extended resource that no node has", cluster: three(), pod: testkit.Pod("p", testkit.Requests("example.com/gpu=1")),
			message: "0/3 nodes are available: 3 Insufficient example.com/gpu. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."},
		{name: "no room for one more pod", cluster: []any{testkit.Node("a", testkit.Capacity("cpu=4,memory=4Gi,pods=1")), testkit.Pod("1", testkit.On("a"))}, pod: testkit.Pod("p"),
			message: "0/1 nodes are available: 1 Too many pods. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."},
		{name: "taints, cordons and selectors are told apart", cluster: []any{testkit.Node("a", testkit.Taint("t", "", corev1.TaintEffectNoSchedule)), testkit.Node("b", testkit.Unschedulable()), testkit.Node("c")},
			pod:     testkit.Pod("p", selectNode("disk=ssd")),
			message: "0/3 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."},
		{name: "a tolerated taint", cluster: []any{testkit.Node("a", testkit.Taint("t", "", corev1.TaintEffectNoSchedule))}, pod: testkit.Pod("p", tolerate("t")), want: []string{"a"}},
		{name: "a soft taint is avoided", cluster: []any{testkit.Node("a", testkit.Taint("t", "", corev1.TaintEffectPreferNoSchedule)), testkit.Node("b")}, pod: testkit.Pod("p"), want: []string{"b"}},
		{name: "only the named node is looked at", cluster: three(), pod: testkit.Pod("p", change(func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
				{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"b"}}}}}}}}
		})), want: []string{"b"}},
		{name: "the named node is full", cluster: with(testkit.Pod("1", testkit.On("b"), testkit.Requests("cpu=4"))), pod: testkit.Pod("p", testkit.Requests("cpu=1"), change(func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
				{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"b"}}}}}}}}
		})), message: "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]. preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."},
		{name: "a preferred label", cluster: three(), pod: testkit.Pod("p", change(func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 1, Preference: corev1.NodeSelectorTerm{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: inZone, Operator: corev1.NodeSelectorOpIn, Values: []string{"y"}}}}}}}}
		})), want: []string{"c"}},
		{name: "a taken host port", cluster: with(testkit.Pod("1", testkit.On("a"), hostPort(80)), testkit.Pod("2", testkit.On("b"), hostPort(80))), pod: testkit.Pod("p", hostPort(80)), want: []string{"c"}},
		{name: "the image is there", cluster: []any{testkit.Node("a"), testkit.Node("b", func(n *corev1.Node) {
			n.Status.Images = []corev1.ContainerImage{{Names: []string{"image:latest"}, SizeBytes: 500 << 20}}
		})}, pod: testkit.Pod("p"), want: []string{"b"}},

		{name: "affinity to a pod in the zone", cluster: with(testkit.Pod("1", testkit.On("a"), testkit.WithLabels("app=db"))), pod: testkit.Pod("p", near(inZone, "app=db")), want: []string{"b"}}, // a is fuller
		{name: "affinity to nobody", cluster: three(), pod: testkit.Pod("p", near(inZone, "app=db")),
			message: "0/3 nodes are available: 3 node(s) didn't match pod affinity rules. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."},
		{name: "the first of a group", cluster: three(), pod: testkit.Pod("p", testkit.WithLabels("app=db"), near(inZone, "app=db")), want: []string{"a", "b", "c"}},
		{name: "affinity does not see other namespaces", cluster: with(testkit.Pod("other/1", testkit.On("a"), testkit.WithLabels("app=db"))), pod: testkit.Pod("p", testkit.WithLabels("app=db"), near(inZone, "app=db")), want: []string{"b", "c"}},
		{name: "affinity by namespace label", cluster: with(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: testkit.Labels("team=x")}}, testkit.Pod("other/1", testkit.On("c"), testkit.WithLabels("app=db"))),
			pod: testkit.Pod("p", near(inZone, "app=db"), change(func(p *corev1.Pod) {
				p.Spec.Affinity.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0].NamespaceSelector = testkit.Selector("team=x")
			})), want: []string{"c"}},
		{name: "anti-affinity by host", cluster: with(testkit.Pod("1", testkit.On("a"), testkit.WithLabels("app=db")), testkit.Pod("2", testkit.On("b"), testkit.WithLabels("app=db"))), pod: testkit.Pod("p", away(host, "app=db")), want: []string{"c"}},
		{name: "anti-affinity of a pod that is there", cluster: with(testkit.Pod("1", testkit.On("a"), away(inZone, "app=db"))), pod: testkit.Pod("p", testkit.WithLabels("app=db")), want: []string{"c"}},
		{name: "both anti-affinities, in upstream's words", cluster: with(testkit.Pod("1", testkit.On("a"), away(host, "app=db")), testkit.Pod("2", testkit.On("b"), testkit.WithLabels("app=web")), testkit.Pod("3", testkit.On("c"), testkit.WithLabels("app=web"))),
			pod:     testkit.Pod("p", testkit.WithLabels("app=db"), away(host, "app=web")),
			message: "0/3 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules, 2 node(s) didn't match pod anti-affinity rules. preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod."},
		{name: "preferred anti-affinity", cluster: with(testkit.Pod("1", testkit.On("a"), testkit.WithLabels("app=db"))), pod: testkit.Pod("p", change(func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 10, PodAffinityTerm: term(inZone, "app=db")}}}}
		})), want: []string{"c"}},

		{name: "spread by zone", cluster: with(testkit.Pod("1", testkit.On("a"), testkit.WithLabels("app=w"))), pod: testkit.Pod("p", testkit.WithLabels("app=w"), spread(1, inZone, "app=w", hard)), want: []string{"c"}},
		{name: "a pod that is leaving is not counted", cluster: with(testkit.Pod("1", testkit.On("a"), testkit.WithLabels("app=w"), change(func(p *corev1.Pod) { now := metav1.Unix(1, 0); p.DeletionTimestamp = &now }))),
			pod: testkit.Pod("p", testkit.WithLabels("app=w"), spread(1, inZone, "app=w", hard)), want: []string{"b", "c"}},
		{name: "too few domains", cluster: with(testkit.Pod("1", testkit.On("a"), testkit.WithLabels("app=w")), testkit.Pod("2", testkit.On("c"), testkit.WithLabels("app=w"))),
			pod:     testkit.Pod("p", testkit.WithLabels("app=w"), spread(1, inZone, "app=w", hard, func(c *corev1.TopologySpreadConstraint) { n := int32(3); c.MinDomains = &n })),
			message: "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints. preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod."},
		{name: "a node without the key", cluster: []any{testkit.Node("a")}, pod: testkit.Pod("p", spread(1, inZone, "app=w", hard)),
			message: "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label). preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."},
		{name: "nodes that the selector excludes do not count", cluster: []any{testkit.Node("a", zone("x"), testkit.NodeLabels("disk=ssd")), testkit.Node("c", zone("y")), testkit.Pod("1", testkit.On("a"), testkit.WithLabels("app=w"))},
			pod: testkit.Pod("p", testkit.WithLabels("app=w"), selectNode("disk=ssd"), spread(1, inZone, "app=w", hard)), want: []string{"a"}},
		{name: "tainted nodes count unless the policy says otherwise", cluster: []any{testkit.Node("a", zone("x")), testkit.Node("c", zone("y"), testkit.Taint("t", "", corev1.TaintEffectNoSchedule)), testkit.Pod("1", testkit.On("a"), testkit.WithLabels("app=w"))},
			pod: testkit.Pod("p", testkit.WithLabels("app=w"), spread(1, inZone, "app=w", hard, func(c *corev1.TopologySpreadConstraint) {
				h := corev1.NodeInclusionPolicyHonor
				c.NodeTaintsPolicy = &h
			})), want: []string{"a"}},
		{name: "soft spread", cluster: with(testkit.Pod("1", testkit.On("a"), testkit.WithLabels("app=w"))), pod: testkit.Pod("p", testkit.WithLabels("app=w"), spread(1, inZone, "app=w", soft)), want: []string{"c"}},
		{name: "matchLabelKeys counts one revision", cluster: with(testkit.Pod("1", testkit.On("c"), testkit.WithLabels("app=w,rev=1")), testkit.Pod("2", testkit.On("a"), testkit.WithLabels("app=w,rev=2"))),
			pod: testkit.Pod("p", testkit.WithLabels("app=w,rev=2"), spread(1, inZone, "app=w", hard, func(c *corev1.TopologySpreadConstraint) { c.MatchLabelKeys = []string{"rev"} })), want: []string{"c"}},

		{name: "a feature that one node declares", cluster: with(testkit.Node("d", declares(nodefeatures.RestartAll)), testkit.Node("e", declares(nodefeatures.PodLevelResize))),
			pod: testkit.Pod("p", restartsAll), want: []string{"d"}},
		{name: "a feature that no node declares", cluster: three(), pod: testkit.Pod("p", restartsAll),
			message: "0/3 nodes are available: 3 node(s) didn't match Pod's required features. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."},

		{name: "a claim that does not exist", cluster: three(), pod: testkit.Pod("p", claims("data")),
			message: `0/3 nodes are available: persistentvolumeclaim "data" not found. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.`},
		{name: "a claim that should have been bound", cluster: with(claim("data", "")), pod: testkit.Pod("p", claims("data")),
			message: "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."},
		{name: "a bound volume on one node", cluster: with(bound(claim("data", ""), "v"), volume("v", "b")), pod: testkit.Pod("p", claims("data")), want: []string{"b"}},
		{name: "a claim that waits, and a local volume", cluster: with(class("local", "kubernetes.io/no-provisioner"), claim("data", "local"), volume("v", "c", "local")), pod: testkit.Pod("p", claims("data")), want: []string{"c"}},
		{name: "a claim that waits, and a provisioner", cluster: with(class("fast", "example.com/disk"), claim("data", "fast")), pod: testkit.Pod("p", claims("data")), want: []string{"a", "b", "c"}},
		{name: "a claim that waits, and nothing", cluster: with(class("local", "kubernetes.io/no-provisioner"), claim("data", "local")), pod: testkit.Pod("p", claims("data")),
			message: "0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := setUp(row.cluster...)
			d := cycle.New(plugins.Table, args)
			chosen := map[string]bool{}
			for seed := range uint64(40) {
				out := d.Decide(c.Snapshot(), framework.NewPod(row.pod), seed)
				if out.Message != row.message {
					t.Fatalf("message\n got %s\nwant %s", out.Message, row.message)
				}
				if out.Node != nil {
					chosen[out.Node.Node.Name] = true
				}
			}
			var got []string
			for n := range chosen {
				got = append(got, n)
			}
			slices.Sort(got)
			if !slices.Equal(got, row.want) {
				t.Errorf("chosen %v, want %v", got, row.want)
			}
		})
	}
}

func claim(name, class string) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: testkit.Meta("PersistentVolumeClaim", name, false), Spec: corev1.PersistentVolumeClaimSpec{
		StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{Requests: testkit.Resources("storage=1Gi")}}}
	return c
}

func bound(c *corev1.PersistentVolumeClaim, volume string) *corev1.PersistentVolumeClaim {
	c.Spec.VolumeName = volume
	c.Annotations = map[string]string{"pv.kubernetes.io/bind-completed": "yes"}
	return c
}

func class(name, provisioner string) *storagev1.StorageClass {
	wait := storagev1.VolumeBindingWaitForFirstConsumer
	return &storagev1.StorageClass{ObjectMeta: testkit.Meta("StorageClass", name, true), Provisioner: provisioner, VolumeBindingMode: &wait}
}

func volume(name, node string, class ...string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{ObjectMeta: testkit.Meta("PersistentVolume", name, true), Spec: corev1.PersistentVolumeSpec{
		Capacity: testkit.Resources("storage=2Gi"), AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: strings.Join(class, ""),
		NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: host, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}},
	}}
}

func TestPreemption(t *testing.T) {
	full := func(prefix, node string, priority int32, n int) []any {
		var out []any
		for i := range n {
			out = append(out, testkit.Pod(fmt.Sprintf("%s%d", prefix, i), testkit.On(node), testkit.Priority(priority), testkit.Requests("cpu=1"), testkit.WithLabels("app="+prefix)))
		}
		return out
	}
	nodes := []any{testkit.Node("a"), testkit.Node("b")}
	pdb := &policyv1.PodDisruptionBudget{ObjectMeta: testkit.Meta("PDB", "keep", false), Spec: policyv1.PodDisruptionBudgetSpec{Selector: testkit.Selector("app=x")}}
	high := func(opts ...podOption) *corev1.Pod {
		return testkit.Pod("high", append([]podOption{testkit.Priority(100), testkit.Requests("cpu=2")}, opts...)...)
	}
	join := func(lists ...[]any) []any { return slices.Concat(lists...) }
	for _, row := range []struct {
		name    string
		cluster []any
		pod     *corev1.Pod
		node    string
		victims string
		why     string
	}{
		{name: "the node with the lower priorities", cluster: join(nodes, full("x", "a", 10, 4), full("y", "b", 5, 4)), pod: high(), node: "b", victims: "y2 y3"},
		{name: "a budget is kept", cluster: join(nodes, full("x", "a", 5, 4), full("y", "b", 10, 4), []any{pdb}), pod: high(), node: "b", victims: "y2 y3"},
		{name: "a budget is broken when nothing else helps", cluster: join([]any{testkit.Node("a")}, full("x", "a", 5, 4), []any{pdb}), pod: high(), node: "a", victims: "x2 x3"},
		{name: "only as many as needed", cluster: join([]any{testkit.Node("a")}, full("x", "a", 5, 3), full("z", "a", 200, 1)), pod: high(), node: "a", victims: "x1 x2"},
		{name: "never", cluster: join(nodes, full("x", "a", 5, 4), full("y", "b", 5, 4)), pod: high(change(func(p *corev1.Pod) { never := corev1.PreemptNever; p.Spec.PreemptionPolicy = &never })),
			why: "0/2 nodes are available: 2 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."},
		{name: "nobody is less important", cluster: join(nodes, full("x", "a", 100, 4), full("y", "b", 500, 4)), pod: high(),
			why: "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod."},
		{name: "anti-affinity of a less important pod", cluster: []any{testkit.Node("a"), testkit.Pod("x", testkit.On("a"), testkit.Priority(1), away(host, "app=high")), testkit.Pod("y", testkit.On("a"), testkit.Priority(1))},
			pod: high(testkit.WithLabels("app=high")), node: "a", victims: "x"},
		{name: "spread is put right", cluster: []any{testkit.Node("a"), testkit.Node("b", testkit.Unschedulable()), testkit.Pod("x", testkit.On("a"), testkit.Priority(1), testkit.WithLabels("app=w")), testkit.Pod("y", testkit.On("a"), testkit.Priority(1))},
			pod: high(testkit.WithLabels("app=w"), spread(1, host, "app=w", corev1.DoNotSchedule)), node: "a", victims: "x"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := setUp(row.cluster...)
			out := cycle.New(plugins.Table, args).Decide(c.Snapshot(), framework.NewPod(row.pod), 7)
			if out.Node != nil {
				t.Fatalf("placed on %s without preemption", out.Node.Node.Name)
			}
			if row.why != "" {
				if out.Preempt != nil || out.Message != row.why {
					t.Errorf("got %s (preempts: %v)\nwant %s", out.Message, out.Preempt != nil, row.why)
				}
				return
			}
			if out.Preempt == nil {
				t.Fatalf("no preemption: %s", out.Message)
			}
			var got []string
			for _, v := range out.Preempt.Victims {
				got = append(got, v.ObjectMeta.Name)
			}
			slices.Sort(got)
			if out.Preempt.Node.Node.Name != row.node || strings.Join(got, " ") != row.victims {
				t.Errorf("evicts %v on %s, want %s on %s", got, out.Preempt.Node.Node.Name, row.victims, row.node)
			}
			if err := c.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRoomThatWasMadeIsKept(t *testing.T) {
	c := setUp(testkit.Node("a"))
	d := cycle.New(plugins.Table, args)
	high := framework.NewPod(testkit.Pod("high", testkit.Priority(10), testkit.Requests("cpu=3"), change(func(p *corev1.Pod) { p.Status.NominatedNodeName = "a" })))
	c.Nominate(high, "a")
	low := framework.NewPod(testkit.Pod("low", testkit.Requests("cpu=2")))
	if out := d.Decide(c.Snapshot(), low, 1); out.Node != nil {
		t.Errorf("a less important pod took the room")
	}
	if out := d.Decide(c.Snapshot(), high, 1); out.Node == nil {
		t.Errorf("the pod itself was refused: %s", out.Message)
	}
	c.Unnominate(high.UID)
	if out := d.Decide(c.Snapshot(), low, 1); out.Node == nil {
		t.Errorf("the room is not free again: %s", out.Message)
	}
}
