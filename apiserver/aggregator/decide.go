package aggregator

import (
	"fmt"
	"reflect"
	"slices"
	"sort"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/keelson/keelson/apiserver/resources"
)

// The label of APIServices that the server itself keeps, and its values: made once when
// a server starts, or kept in step with the custom resources.
const (
	managed        = "kube-aggregator.kubernetes.io/automanaged"
	managedOnStart = "onstart"
	managedAlways  = "true"
)

// Step is one change of an APIService that stands for what this server serves itself.
type Step struct {
	Do   Action
	Name string
	UID  types.UID                     // of the object to change or delete
	Want *apiregistrationv1.APIService // to create, or with the spec to set
}

// Action is what a Step does.
type Action string

const (
	Create Action = "create"
	Update Action = "update"
	Delete Action = "delete"
)

func (s Step) String() string { return string(s.Do) + " " + s.Name }

// Decide returns what is to be done so that every group version of rows has its APIService,
// and none is left of one that has gone. An object without the label is somebody's own and
// stays as it is. first is true on the first pass of a server: built-in group versions
// are registered then and not again, so that an administrator may remove them. whole is false while rows may
// still lack custom kinds: those of their group versions that are registered are no left-overs.
//
// Source: Kubernetes documentation, "Kubernetes API Aggregation Layer", and what a 1.36
// cluster does with its APIServices.
func Decide(rows []*resources.Row, have map[string]*apiregistrationv1.APIService, first, whole bool) []Step {
	want := map[string]*apiregistrationv1.APIService{}
	for _, row := range rows {
		gv := schema.GroupVersion{Group: row.Group, Version: row.Version}
		name := gv.Version + "." + gv.Group
		if gv.Group == Group || want[name] != nil {
			continue
		}
		label := managedOnStart
		if row.Custom != nil {
			label = managedAlways
		}
		p := ofGroup(gv)
		want[name] = &apiregistrationv1.APIService{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{managed: label}},
			Spec: apiregistrationv1.APIServiceSpec{
				Group: gv.Group, Version: gv.Version, GroupPriorityMinimum: p.Group, VersionPriority: p.Version,
			},
		}
	}
	var steps []Step
	for name, w := range want {
		h := have[name]
		switch {
		case h == nil:
			if first || w.Labels[managed] == managedAlways {
				steps = append(steps, Step{Do: Create, Name: name, Want: w})
			}
		case h.Labels[managed] != "" && !reflect.DeepEqual(h.Spec, w.Spec) && (first || h.Labels[managed] == managedAlways):
			steps = append(steps, Step{Do: Update, Name: name, UID: h.UID, Want: w})
		}
	}
	for name, h := range have {
		label := h.Labels[managed]
		if want[name] == nil && (label == managedAlways && whole || label == managedOnStart && first) {
			steps = append(steps, Step{Do: Delete, Name: name, UID: h.UID})
		}
	}
	sort.Slice(steps, func(i, j int) bool { return steps[i].Name < steps[j].Name })
	return steps
}

// Reachable says what keeps an aggregated API from being asked at all, nil when nothing does.
// svc is nil when there is no such service; list are its endpoint slices.
//
// Source: reasons and messages of the condition Available in a 1.36 cluster.
func Reachable(ref *apiregistrationv1.ServiceReference, svc *corev1.Service, list []*discoveryv1.EndpointSlice) *apiregistrationv1.APIServiceCondition {
	no := func(reason, format string, args ...any) *apiregistrationv1.APIServiceCondition {
		return &apiregistrationv1.APIServiceCondition{
			Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionFalse, Reason: reason, Message: fmt.Sprintf(format, args...),
		}
	}
	if svc == nil {
		return no("ServiceNotFound", "service/%s in %q is not present", ref.Name, ref.Namespace)
	}
	if svc.Spec.Type != corev1.ServiceTypeClusterIP {
		return nil
	}
	i := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == portOf(ref) })
	if i < 0 {
		return no("ServicePortError", "service/%s in %q is not listening on port %d", ref.Name, ref.Namespace, portOf(ref))
	}
	if len(list) == 0 {
		return no("EndpointsNotFound", "cannot find endpointslices for service/%s in %q", ref.Name, ref.Namespace)
	}
	port := svc.Spec.Ports[i].Name
	ready := func(e discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }
	named := func(p discoveryv1.EndpointPort) bool { return p.Port != nil && p.Name != nil && *p.Name == port }
	for _, s := range list {
		if slices.ContainsFunc(s.Endpoints, ready) && slices.ContainsFunc(s.Ports, named) {
			return nil
		}
	}
	return no("MissingEndpoints", "endpointslices for service/%s in %q have no addresses with port name %q", ref.Name, ref.Namespace, port)
}

func portOf(ref *apiregistrationv1.ServiceReference) int32 {
	if ref.Port == nil {
		return 443
	}
	return *ref.Port
}

// answered is the condition after the group version's discovery document was asked for.
func answered(err error) apiregistrationv1.APIServiceCondition {
	c := apiregistrationv1.APIServiceCondition{
		Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionTrue, Reason: "Passed", Message: "all checks passed",
	}
	if err != nil {
		c.Status, c.Reason, c.Message = apiregistrationv1.ConditionFalse, "FailedDiscoveryCheck", err.Error()
	}
	return c
}

// pathOf is where a group version is served.
func pathOf(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "/api/" + gv.Version
	}
	return "/apis/" + gv.Group + "/" + gv.Version
}
