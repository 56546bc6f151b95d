package pod

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"pgregory.net/rapid"

	"github.com/keelson/keelson/libs/testkit"
)

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Replay(string(text))
			if err != nil {
				t.Fatal(err)
			}
			testkit.Golden(t, filepath.Base(file), got)
		})
	}
}

// The label decides whether a running container is still the one that the pod asks for: it must
// change with name and image and with nothing else.
func TestHashIsStable(t *testing.T) {
	a := Hash(&corev1.Container{Name: "c", Image: "busybox:1.36"})
	b := Hash(&corev1.Container{Name: "c", Image: "busybox:1.36", Command: []string{"sh"}})
	if a != b || a == Hash(&corev1.Container{Name: "c", Image: "busybox:1.37"}) {
		t.Fatalf("the hash must depend on name and image alone, have %s and %s", a, b)
	}
}

func TestRestarts(t *testing.T) {
	never, always := corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyAlways
	rule := []corev1.ContainerRestartRule{{Action: corev1.ContainerRestartRuleActionRestart,
		ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}}}}
	for _, row := range []struct {
		says   string
		policy corev1.RestartPolicy
		c      corev1.Container
		kind   Kind
		code   int32
		want   bool
	}{
		{"Always restarts a success", "Always", corev1.Container{}, Main, 0, true},
		{"OnFailure leaves a success", "OnFailure", corev1.Container{}, Main, 0, false},
		{"OnFailure restarts a failure", "OnFailure", corev1.Container{}, Main, 1, true},
		{"Never leaves a failure", "Never", corev1.Container{}, Main, 1, false},
		{"an init container that succeeded stays so", "Always", corev1.Container{}, Init, 0, false},
		{"a failed init container is repeated", "Always", corev1.Container{}, Init, 1, true},
		{"a failed init container ends a Never pod", "Never", corev1.Container{}, Init, 1, false},
		{"a sidecar runs on in a Never pod", "Never", corev1.Container{RestartPolicy: &always}, Sidecar, 0, true},
		{"an ephemeral container runs once", "Always", corev1.Container{}, Ephemeral, 1, false},
		{"a container's own policy wins", "Always", corev1.Container{RestartPolicy: &never}, Main, 1, false},
		{"a rule wins over the policy", "Never", corev1.Container{RestartPolicy: &never, RestartPolicyRules: rule}, Main, 42, true},
		{"a rule is only for its codes", "Never", corev1.Container{RestartPolicy: &never, RestartPolicyRules: rule}, Main, 1, false},
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: row.policy}}
		if got := Restarts(p, &row.c, row.kind, row.code); got != row.want {
			t.Errorf("%s: got %v", row.says, got)
		}
	}
}

func TestQOS(t *testing.T) {
	list := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	for _, row := range []struct {
		says string
		r    corev1.ResourceRequirements
		want corev1.PodQOSClass
		oom  int64
	}{
		{"nothing asked", corev1.ResourceRequirements{}, corev1.PodQOSBestEffort, 1000},
		{"limits equal requests", corev1.ResourceRequirements{Requests: list("1", "1Gi"), Limits: list("1", "1Gi")}, corev1.PodQOSGuaranteed, -997},
		{"limits alone", corev1.ResourceRequirements{Limits: list("1", "1Gi")}, corev1.PodQOSGuaranteed, -997},
		{"requests alone", corev1.ResourceRequirements{Requests: list("1", "1Gi")}, corev1.PodQOSBurstable, 750},
		{"a tiny request", corev1.ResourceRequirements{Requests: list("1m", "1")}, corev1.PodQOSBurstable, 999},
		{"nearly all memory", corev1.ResourceRequirements{Requests: list("1", "4Gi")}, corev1.PodQOSBurstable, 3},
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: row.r}}}}
		if got := QOS(p); got != row.want {
			t.Errorf("%s: class %s, want %s", row.says, got, row.want)
		}
		if got := OOMScore(p, &p.Spec.Containers[0], 4<<30); got != row.oom {
			t.Errorf("%s: oom_score_adj %d, want %d", row.says, got, row.oom)
		}
	}
}

func TestAdmit(t *testing.T) {
	node := testkit.Node("n1", testkit.Capacity("cpu=2,memory=4Gi,pods=2"))
	small := func(name string) *corev1.Pod { return testkit.Pod("default/"+name, testkit.Requests("cpu=1500m")) }
	port := func(name string) *corev1.Pod {
		p := testkit.Pod("default/" + name)
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 80, Protocol: "TCP"}}
		return p
	}
	strict := testkit.Pod("default/a")
	policy := corev1.SupplementalGroupsPolicyStrict
	strict.Spec.SecurityContext = &corev1.PodSecurityContext{SupplementalGroupsPolicy: &policy}
	for _, row := range []struct {
		says   string
		pod    *corev1.Pod
		others []*corev1.Pod
		want   string
	}{
		{"room for it", small("a"), nil, ""},
		{"no CPU left", small("b"), []*corev1.Pod{small("a")}, "OutOfcpu"},
		{"too many pods", testkit.Pod("default/c"), []*corev1.Pod{testkit.Pod("default/a"), testkit.Pod("default/b")}, "OutOfpods"},
		{"groups that the runtime cannot keep strict", strict, nil, "SupplementalGroupsPolicyNotSupported"},
		{"port in use", port("b"), []*corev1.Pod{port("a")}, "NodePorts"},
	} {
		got, _ := Admit(row.pod, row.others, node)
		if (got == nil && row.want != "") || (got != nil && got.Reason != row.want) {
			t.Errorf("%s: got %+v, want %q", row.says, got, row.want)
		}
	}
}

// What a critical pod takes: nothing that it does not need, and nothing of a better class while a lesser one will do.
func TestPreempt(t *testing.T) {
	node := testkit.Node("n1", testkit.Capacity("cpu=2,memory=4Gi,pods=4"))
	uses := func(name, requests string, o ...func(*corev1.Pod)) *corev1.Pod {
		p := testkit.Pod("default/"+name, testkit.Requests(requests))
		for _, f := range o {
			f(p)
		}
		return p
	}
	bare := func(name string) *corev1.Pod { return testkit.Pod("default/" + name) }
	important := func(p *corev1.Pod) { priority := int32(criticalPriority); p.Spec.Priority = &priority }
	guaranteed := func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Limits = p.Spec.Containers[0].Resources.Requests
	}
	port := func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 80, Protocol: "TCP"}}
	}
	for _, row := range []struct {
		says   string
		pod    *corev1.Pod
		others []*corev1.Pod
		reason string
		ended  string
		lacks  corev1.ResourceName
	}{
		{"there is room", uses("x", "cpu=1", important), []*corev1.Pod{uses("a", "cpu=1")}, "", "", ""},
		{"the pod that fits best", uses("x", "cpu=1", important), []*corev1.Pod{uses("a", "cpu=500m"), uses("b", "cpu=1")}, "", "a", "cpu"},
		{"the smallest that is enough", uses("x", "cpu=500m", important), []*corev1.Pod{uses("a", "cpu=1500m"), uses("b", "cpu=500m")}, "", "b", "cpu"},
		{"a guaranteed pod stays while a burstable one will do", uses("x", "cpu=1", important),
			[]*corev1.Pod{uses("a", "cpu=1,memory=1Gi", guaranteed), uses("b", "cpu=1")}, "", "b", "cpu"},
		{"two of them", uses("x", "cpu=2", important), []*corev1.Pod{uses("a", "cpu=1"), uses("b", "cpu=1")}, "", "a b", "cpu"},
		{"a place is freed by any pod", uses("x", "cpu=1m", important), []*corev1.Pod{uses("a", "cpu=1m"), bare("b"), uses("c", "cpu=1m"), uses("d", "cpu=1m")}, "", "b", "pods"},
		{"critical pods stay", uses("x", "cpu=1", important), []*corev1.Pod{uses("a", "cpu=2", important)}, "UnexpectedAdmissionError", "", ""},
		{"another reason to refuse it", uses("x", "cpu=2", important, port), []*corev1.Pod{uses("a", "cpu=1", port)}, "NodePorts", "", ""},
		{"no critical pod", uses("x", "cpu=2"), []*corev1.Pod{uses("a", "cpu=1")}, "OutOfcpu", "", ""},
	} {
		end, preempt := Admit(row.pod, row.others, node)
		var ended []string
		for _, p := range preempt.Pods {
			ended = append(ended, p.Name)
		}
		slices.Sort(ended)
		reason := ""
		if end != nil {
			reason = end.Reason
		}
		if reason != row.reason || strings.Join(ended, " ") != row.ended || preempt.Lacks != row.lacks {
			t.Errorf("%s: refused %q, ended %v for %q; want %q, %q, %q", row.says, reason, ended, preempt.Lacks, row.reason, row.ended, row.lacks)
		}
	}
}

// Whatever is seen, Decide asks for nothing twice, starts nothing outside a ready sandbox,
// and never moves a pod back.
func TestDecideProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1e9, 0)
		in := Input{Now: now, Node: NodeFacts{Runtime: "x"}, Removed: rapid.Bool().Draw(t, "removed")}
		in.Pod = &corev1.Pod{Spec: corev1.PodSpec{
			RestartPolicy:  rapid.SampledFrom([]corev1.RestartPolicy{"Always", "OnFailure", "Never"}).Draw(t, "policy"),
			InitContainers: []corev1.Container{{Name: "i", Image: "x"}},
			Containers:     []corev1.Container{{Name: "a", Image: "x"}, {Name: "b", Image: "x"}},
		}}
		sandboxes := rapid.IntRange(0, 2).Draw(t, "sandboxes")
		ids := []string{"s0", "s1"}
		for i := range sandboxes {
			in.Seen.Sandboxes = append(in.Seen.Sandboxes, Sandbox{ID: ids[i], Ready: rapid.Bool().Draw(t, "ready"), Attempt: uint32(sandboxes - i)})
		}
		for range rapid.IntRange(0, 5).Draw(t, "containers") {
			in.Seen.Containers = append(in.Seen.Containers, Container{
				ID: rapid.StringMatching(`c[0-9]{6}`).Draw(t, "id"), Name: rapid.SampledFrom([]string{"i", "a", "b"}).Draw(t, "name"),
				Sandbox: rapid.SampledFrom(ids).Draw(t, "sandbox"), State: State(rapid.IntRange(0, 3).Draw(t, "state")),
				ExitCode: int32(rapid.IntRange(0, 1).Draw(t, "code")), Finished: now.Add(-time.Second),
			})
		}
		in.Memory = Memory{Phase: Phase(rapid.IntRange(0, 3).Draw(t, "phase")), Volumes: rapid.Bool().Draw(t, "volumes"), TornDown: rapid.Bool().Draw(t, "torn down"), Clean: rapid.Bool().Draw(t, "clean"),
			Busy: map[string]bool{}, Probes: map[string]Probe{}, Failures: map[string]Failure{}, Backoff: map[string]Backoff{}}
		d := Decide(in)
		if d.Phase < in.Memory.Phase {
			t.Fatalf("phase went back from %s to %s", in.Memory.Phase, d.Phase)
		}
		live := false
		for _, c := range in.Seen.Containers {
			live = live || c.State == Live || c.State == Unknown
		}
		targets := map[string]bool{}
		for _, s := range d.Steps {
			if targets[s.Target()] {
				t.Fatalf("two steps for %s: %v", s.Target(), d.Steps)
			}
			targets[s.Target()] = true
			switch s.Do {
			case Start:
				if in.Seen.Ready(false) == nil || d.Phase > Running {
					t.Fatalf("start without a ready sandbox: %v", d.Steps)
				}
			case CreateSandbox:
				if live && d.Phase == Running && anyLive(in.Seen) {
					t.Fatalf("a new sandbox while containers run: %v", d.Steps)
				}
			case Delete, TearDown, Forget:
				if live {
					t.Fatalf("%v while containers run", s)
				}
			case RemoveCgroup:
				if live || slices.ContainsFunc(in.Seen.Sandboxes, func(sb Sandbox) bool { return sb.Ready }) || !in.Memory.TornDown {
					t.Fatalf("%v while there is something in it", s)
				}
			}
		}
		st := Status(in, d)
		if len(st.ContainerStatuses) != 2 || len(st.InitContainerStatuses) != 1 {
			t.Fatalf("containers are missing from the status")
		}
	})
}

func anyLive(s Seen) bool {
	for _, c := range s.Containers {
		if c.State == Live {
			return true
		}
	}
	return false
}
