package fairness

import (
	"fmt"
	"reflect"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/apiserver/resources"
)

// initial is an object of every cluster: one of level and flow is set. Mandatory ones are
// kept as they are here; the others belong to the administrator once their annotation says so.
type initial struct {
	mandatory bool
	level     *flowcontrolv1.PriorityLevelConfiguration
	flow      *flowcontrolv1.FlowSchema
}

func own(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Annotations: map[string]string{flowcontrolv1.AutoUpdateAnnotationKey: "true"}}
}

// defaults are the objects that a 1.36 cluster has.
//
// Source: Kubernetes documentation, "API Priority and Fairness: default priority levels and
// FlowSchemas", and `kubectl get flowschemas,prioritylevelconfigurations -o yaml`.
func defaults() []initial {
	exempt := initial{mandatory: true, level: &flowcontrolv1.PriorityLevelConfiguration{
		ObjectMeta: own("exempt"),
		Spec: flowcontrolv1.PriorityLevelConfigurationSpec{
			Type:   flowcontrolv1.PriorityLevelEnablementExempt,
			Exempt: &flowcontrolv1.ExemptPriorityLevelConfiguration{NominalConcurrencyShares: new(int32), LendablePercent: new(int32)},
		},
	}}
	limited := func(name string, shares, lendable, queues, hand int32) initial {
		l := &flowcontrolv1.LimitedPriorityLevelConfiguration{NominalConcurrencyShares: &shares, LendablePercent: &lendable}
		l.LimitResponse.Type = flowcontrolv1.LimitResponseTypeReject
		if queues > 0 {
			l.LimitResponse.Type = flowcontrolv1.LimitResponseTypeQueue
			l.LimitResponse.Queuing = &flowcontrolv1.QueuingConfiguration{Queues: queues, HandSize: hand, QueueLengthLimit: 50}
		}
		return initial{level: &flowcontrolv1.PriorityLevelConfiguration{
			ObjectMeta: own(name),
			Spec:       flowcontrolv1.PriorityLevelConfigurationSpec{Type: flowcontrolv1.PriorityLevelEnablementLimited, Limited: l},
		}}
	}
	catchAll := limited("catch-all", 5, 0, 0, 0)
	catchAll.mandatory = true

	all := []string{"*"}
	everything := []flowcontrolv1.ResourcePolicyRule{{Verbs: all, APIGroups: all, Resources: all, Namespaces: all, ClusterScope: true}}
	everywhere := []flowcontrolv1.NonResourcePolicyRule{{Verbs: all, NonResourceURLs: all}}
	leases := func(verbs ...string) flowcontrolv1.ResourcePolicyRule {
		return flowcontrolv1.ResourcePolicyRule{Verbs: verbs, APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Namespaces: all}
	}
	groups := func(names ...string) (out []flowcontrolv1.Subject) {
		for _, n := range names {
			out = append(out, flowcontrolv1.Subject{Kind: flowcontrolv1.SubjectKindGroup, Group: &flowcontrolv1.GroupSubject{Name: n}})
		}
		return out
	}
	users := func(names ...string) (out []flowcontrolv1.Subject) {
		for _, n := range names {
			out = append(out, flowcontrolv1.Subject{Kind: flowcontrolv1.SubjectKindUser, User: &flowcontrolv1.UserSubject{Name: n}})
		}
		return out
	}
	systemAccounts := flowcontrolv1.Subject{
		Kind:           flowcontrolv1.SubjectKindServiceAccount,
		ServiceAccount: &flowcontrolv1.ServiceAccountSubject{Namespace: metav1.NamespaceSystem, Name: "*"},
	}
	anybody := groups("system:unauthenticated", "system:authenticated")
	const byUser, byNamespace = flowcontrolv1.FlowDistinguisherMethodByUserType, flowcontrolv1.FlowDistinguisherMethodByNamespaceType
	schema := func(name, level string, precedence int32, by flowcontrolv1.FlowDistinguisherMethodType, who []flowcontrolv1.Subject,
		what []flowcontrolv1.ResourcePolicyRule, where []flowcontrolv1.NonResourcePolicyRule) initial {
		s := &flowcontrolv1.FlowSchema{ObjectMeta: own(name), Spec: flowcontrolv1.FlowSchemaSpec{
			MatchingPrecedence:         precedence,
			PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: level},
			Rules:                      []flowcontrolv1.PolicyRulesWithSubjects{{Subjects: who, ResourceRules: what, NonResourceRules: where}},
		}}
		if by != "" {
			s.Spec.DistinguisherMethod = &flowcontrolv1.FlowDistinguisherMethod{Type: by}
		}
		return initial{flow: s}
	}
	must := func(i initial) initial { i.mandatory = true; return i }
	return []initial{
		exempt,
		catchAll,
		limited("system", 30, 33, 64, 6),
		limited("node-high", 40, 25, 64, 6),
		limited("leader-election", 10, 0, 16, 4),
		limited("workload-high", 40, 50, 128, 6),
		limited("workload-low", 100, 90, 128, 6),
		limited("global-default", 20, 50, 128, 6),

		must(schema("exempt", "exempt", 1, "", groups("system:masters"), everything, everywhere)),
		must(schema("catch-all", "catch-all", 10000, byUser, anybody, everything, everywhere)),
		schema("probes", "exempt", 2, "", anybody, nil, []flowcontrolv1.NonResourcePolicyRule{
			{Verbs: []string{"get"}, NonResourceURLs: []string{"/healthz", "/readyz", "/livez"}},
		}),
		schema("system-leader-election", "leader-election", 100, byUser,
			append(users("system:kube-controller-manager", "system:kube-scheduler"), systemAccounts),
			[]flowcontrolv1.ResourcePolicyRule{leases("get", "create", "update")}, nil),
		schema("system-node-high", "node-high", 400, byUser, groups("system:nodes"), []flowcontrolv1.ResourcePolicyRule{
			{Verbs: all, APIGroups: []string{""}, Resources: []string{"nodes", "nodes/status"}, Namespaces: all, ClusterScope: true}, leases("*"),
		}, nil),
		schema("system-nodes", "system", 500, byUser, groups("system:nodes"), everything, everywhere),
		schema("kube-controller-manager", "workload-high", 800, byNamespace, users("system:kube-controller-manager"), everything, everywhere),
		schema("kube-scheduler", "workload-high", 800, byNamespace, users("system:kube-scheduler"), everything, everywhere),
		schema("kube-system-service-accounts", "workload-high", 900, byNamespace, []flowcontrolv1.Subject{systemAccounts}, everything, everywhere),
		schema("service-accounts", "workload-low", 9000, byUser, groups("system:serviceaccounts"), everything, everywhere),
		schema("global-default", "global-default", 9900, byUser, anybody, everything, everywhere),
	}
}

// Step is one change of the objects.
type Step struct {
	Do       Action
	Resource schema.GroupResource
	Name     string
	UID      types.UID
	Create   resources.Object
	Level    *flowcontrolv1.PriorityLevelConfigurationSpec // to set
	Flow     *flowcontrolv1.FlowSchemaSpec                 // to set
	Dangling *flowcontrolv1.FlowSchemaCondition            // to set in the status
}

// Action is what a Step does.
type Action string

const (
	Create Action = "create"
	Update Action = "update"
	Status Action = "status"
	Delete Action = "delete"
)

func (s Step) String() string { return fmt.Sprintf("%s %s %s", s.Do, s.Resource.Resource, s.Name) }

// Decide returns what is to be done so that the default objects are there, the server's own are as
// they should be, and every FlowSchema says whether its level exists.
//
// Source: Kubernetes documentation, "API Priority and Fairness: maintenance of the mandatory and
// suggested configuration objects".
func Decide(flows []*flowcontrolv1.FlowSchema, levels []*flowcontrolv1.PriorityLevelConfiguration, now time.Time) []Step {
	haveFlow, haveLevel := map[string]*flowcontrolv1.FlowSchema{}, map[string]*flowcontrolv1.PriorityLevelConfiguration{}
	for _, f := range flows {
		haveFlow[f.Name] = f
	}
	for _, l := range levels {
		haveLevel[l.Name] = l
	}
	var steps []Step
	known := map[string]bool{}
	for _, d := range defaults() {
		if d.level != nil {
			known["l/"+d.level.Name] = true
			h := haveLevel[d.level.Name]
			switch {
			case h == nil:
				steps = append(steps, Step{Do: Create, Resource: grLevels, Name: d.level.Name, Create: d.level})
			case (d.mandatory || ours(h)) && !reflect.DeepEqual(h.Spec, d.level.Spec):
				steps = append(steps, Step{Do: Update, Resource: grLevels, Name: h.Name, UID: h.UID, Level: &d.level.Spec})
			}
			continue
		}
		known["f/"+d.flow.Name] = true
		h := haveFlow[d.flow.Name]
		switch {
		case h == nil:
			steps = append(steps, Step{Do: Create, Resource: grFlows, Name: d.flow.Name, Create: d.flow})
		case (d.mandatory || ours(h)) && !reflect.DeepEqual(h.Spec, d.flow.Spec):
			steps = append(steps, Step{Do: Update, Resource: grFlows, Name: h.Name, UID: h.UID, Flow: &d.flow.Spec})
		}
	}
	// What an older version made and this one does not know goes, unless somebody has made it his own.
	for _, f := range flows {
		if !known["f/"+f.Name] && f.Annotations[flowcontrolv1.AutoUpdateAnnotationKey] == "true" {
			steps = append(steps, Step{Do: Delete, Resource: grFlows, Name: f.Name, UID: f.UID})
			continue
		}
		want := dangling(f, haveLevel[f.Spec.PriorityLevelConfiguration.Name] != nil, now)
		if want != nil {
			steps = append(steps, Step{Do: Status, Resource: grFlows, Name: f.Name, UID: f.UID, Dangling: want})
		}
	}
	for _, l := range levels {
		if !known["l/"+l.Name] && l.Annotations[flowcontrolv1.AutoUpdateAnnotationKey] == "true" {
			steps = append(steps, Step{Do: Delete, Resource: grLevels, Name: l.Name, UID: l.UID})
		}
	}
	return steps
}

// ours: the annotation decides; without one, whoever has not changed the object has left it to us.
func ours(o metav1.Object) bool {
	switch o.GetAnnotations()[flowcontrolv1.AutoUpdateAnnotationKey] {
	case "true":
		return true
	case "false":
		return false
	}
	return o.GetGeneration() == 1
}

// dangling is the condition that f should have, nil when it has it.
func dangling(f *flowcontrolv1.FlowSchema, found bool, now time.Time) *flowcontrolv1.FlowSchemaCondition {
	name := f.Spec.PriorityLevelConfiguration.Name
	want := flowcontrolv1.FlowSchemaCondition{
		Type: flowcontrolv1.FlowSchemaConditionDangling, Status: flowcontrolv1.ConditionFalse, Reason: "Found",
		Message: fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q and it exists", name),
	}
	if !found {
		want.Status, want.Reason = flowcontrolv1.ConditionTrue, "NotFound"
		want.Message = fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q but there is no such object", name)
	}
	want.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
	for _, have := range f.Status.Conditions {
		if have.Type != want.Type {
			continue
		}
		if have.Status == want.Status && have.Reason == want.Reason && have.Message == want.Message {
			return nil
		}
		if have.Status == want.Status {
			want.LastTransitionTime = have.LastTransitionTime
		}
	}
	return &want
}
