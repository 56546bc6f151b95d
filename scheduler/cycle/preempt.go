package cycle

import (
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/scheduler/framework"
)

// How many nodes are examined for victims: a tenth of them, at least this many. Source: defaults of
// kube-scheduler's DefaultPreemption.
const (
	minCandidates       = 100
	candidatePercentage = 10
)

const (
	noVictims  = "No preemption victims found for incoming pod"
	notHelpful = "Preemption is not helpful for scheduling"
)

// preempt looks for the node where the least has to be evicted so that p fits. why is what to tell the
// user when there is none; "" when preemption was found.
func (c *Cycle) preempt(k *class, s *framework.Snapshot, p *framework.Pod, slots []int, seed uint64) (found *Preemption, why string) {
	if p.Spec.PreemptionPolicy != nil && *p.Spec.PreemptionPolicy == corev1.PreemptNever {
		return nil, "not eligible due to preemptionPolicy=Never."
	}
	if name := p.Status.NominatedNodeName; name != "" {
		if n := s.Node(name); n != nil && (c.refusals[n.Slot] == nil || !c.refusals[n.Slot].Final) && Leaving(n, p) {
			return nil, "not eligible due to a terminating pod on the nominated node."
		}
	}
	var potential []*framework.Node
	hopeless := 0
	for slot, n := range s.Nodes {
		if n == nil {
			continue
		}
		if slots != nil && !slices.Contains(slots, slot) || c.refusals[slot] != nil && c.refusals[slot].Final {
			hopeless++
			continue
		}
		potential = append(potential, n)
	}
	reasons := map[string]int{}
	if hopeless > 0 {
		reasons[notHelpful] = hopeless
	}
	if len(potential) == 0 {
		return nil, sentence(s.Live, reasons)
	}
	want := max(minCandidates, len(potential)*candidatePercentage/100)
	first := int(mix(seed) % uint64(len(potential)))
	budgets := budgetsOf(s.PDBs)
	candidates := 0
	var best *Preemption
	for i := range potential {
		n := potential[(first+i)%len(potential)]
		candidate, refusal := c.victims(k, p, n, budgets)
		if refusal != nil {
			for _, r := range refusal.Reasons {
				reasons[r]++
			}
			continue
		}
		if best == nil || cheaper(candidate, best) {
			best = candidate
		}
		if candidates++; candidates >= want {
			break
		}
	}
	if best != nil {
		return best, ""
	}
	return nil, sentence(s.Live, reasons)
}

// Leaving tells whether a pod of lower priority than p is on its way out of the node because of a preemption.
func Leaving(n *framework.Node, p *framework.Pod) bool {
	return slices.ContainsFunc(n.Pods, func(q *framework.Pod) bool {
		if q.Priority >= p.Priority || q.DeletionTimestamp == nil {
			return false
		}
		return slices.ContainsFunc(q.Status.Conditions, func(cond corev1.PodCondition) bool {
			return cond.Type == corev1.DisruptionTarget && cond.Status == corev1.ConditionTrue && cond.Reason == corev1.PodReasonPreemptionByScheduler
		})
	})
}

var noVictimsRefusal = &framework.Refusal{Plugin: "DefaultPreemption", Reasons: []string{noVictims}, Final: true}

// victims finds the fewest and least important pods to evict from one node. All pods of lower priority
// are taken away first; then as many as possible are put back, the most important first, those whose
// eviction a PodDisruptionBudget forbids before the others.
func (c *Cycle) victims(k *class, p *framework.Pod, n *framework.Node, budgets []*budget) (*Preemption, *framework.Refusal) {
	n = n.Facing(p)
	var lower []*framework.Pod
	rest := n
	for _, q := range n.Pods {
		if q.Priority < p.Priority {
			lower = append(lower, q)
		}
	}
	if len(lower) == 0 {
		return nil, noVictimsRefusal
	}
	assume := func(q *framework.Pod, sign int32) {
		for i := range c.globals {
			if a := c.globals[i].Assume; a != nil {
				a(n.Slot, q, sign)
			}
		}
	}
	for _, q := range lower {
		rest = rest.Without(q)
		assume(q, -1)
	}
	fits := func(n *framework.Node) *framework.Refusal {
		if r := k.filter(n); r != nil {
			return r
		}
		return c.refuse(n)
	}
	if r := fits(rest); r != nil {
		for _, q := range lower {
			assume(q, 1)
		}
		return nil, r
	}
	slices.SortStableFunc(lower, moreImportantFirst)
	protected, free := split(lower, budgets)
	out := &Preemption{Node: n}
	back := func(q *framework.Pod) bool {
		with := rest.With(q)
		assume(q, 1)
		if fits(with) == nil {
			rest = with
			return true
		}
		assume(q, -1)
		out.Victims = append(out.Victims, q)
		return false
	}
	for _, q := range protected {
		if !back(q) {
			out.PDBViolations++
		}
	}
	for _, q := range free {
		back(q)
	}
	for _, q := range out.Victims {
		assume(q, 1)
	}
	if len(out.Victims) == 0 {
		return nil, noVictimsRefusal // it would fit as it is: another look will say so
	}
	slices.SortStableFunc(out.Victims, moreImportantFirst)
	return out, nil
}

func moreImportantFirst(a, b *framework.Pod) int {
	switch {
	case a.Priority != b.Priority:
		if a.Priority > b.Priority {
			return -1
		}
		return 1
	case started(a).Before(started(b)):
		return -1
	case started(b).Before(started(a)):
		return 1
	}
	return 0
}

// started is when the kubelet took the pod on; a pod that has not been taken on counts as the newest.
func started(p *framework.Pod) *metav1.Time {
	if p.Status.StartTime != nil {
		return p.Status.StartTime
	}
	return &never
}

var never = metav1.Unix(1<<40, 0)

// cheaper compares two candidates: fewer broken budgets, then a lower highest priority, a smaller sum of
// priorities, fewer pods, a later start of the most important victim. With equal ones the first found stays.
func cheaper(a, b *Preemption) bool {
	if a.PDBViolations != b.PDBViolations {
		return a.PDBViolations < b.PDBViolations
	}
	if len(a.Victims) == 0 || len(b.Victims) == 0 {
		return len(a.Victims) < len(b.Victims)
	}
	if pa, pb := a.Victims[0].Priority, b.Victims[0].Priority; pa != pb {
		return pa < pb
	}
	sum := func(victims []*framework.Pod) (n int64) {
		for _, v := range victims {
			n += int64(v.Priority) + math.MaxInt32 + 1 // so that few pods of negative priority beat many
		}
		return n
	}
	if sa, sb := sum(a.Victims), sum(b.Victims); sa != sb {
		return sa < sb
	}
	if len(a.Victims) != len(b.Victims) {
		return len(a.Victims) < len(b.Victims)
	}
	earliest := func(victims []*framework.Pod) *metav1.Time {
		out := started(victims[0])
		for _, v := range victims {
			if v.Priority == victims[0].Priority && started(v).Before(out) {
				out = started(v)
			}
		}
		return out
	}
	return earliest(b.Victims).Before(earliest(a.Victims))
}

// budget is a PodDisruptionBudget with what it still allows.
type budget struct {
	pdb      *policyv1.PodDisruptionBudget
	selector labels.Selector
}

func budgetsOf(pdbs map[types.NamespacedName]*policyv1.PodDisruptionBudget) []*budget {
	out := make([]*budget, 0, len(pdbs))
	for _, pdb := range pdbs {
		sel, err := metav1.LabelSelectorAsSelector(pdb.Spec.Selector)
		if err != nil || sel.Empty() {
			continue
		}
		out = append(out, &budget{pdb, sel})
	}
	return out
}

// split separates the pods whose eviction would break a budget, counting each eviction before them.
func split(pods []*framework.Pod, budgets []*budget) (protected, free []*framework.Pod) {
	if len(budgets) == 0 {
		return nil, pods
	}
	allowed := make([]int32, len(budgets))
	for i, b := range budgets {
		allowed[i] = b.pdb.Status.DisruptionsAllowed
	}
	for _, p := range pods {
		broken := false
		for i, b := range budgets {
			if b.pdb.Namespace != p.Namespace || len(p.Labels) == 0 || !b.selector.Matches(labels.Set(p.Labels)) {
				continue
			}
			if _, counted := b.pdb.Status.DisruptedPods[p.ObjectMeta.Name]; counted {
				continue
			}
			if allowed[i]--; allowed[i] < 0 {
				broken = true
			}
		}
		if broken {
			protected = append(protected, p)
		} else {
			free = append(free, p)
		}
	}
	return protected, free
}
