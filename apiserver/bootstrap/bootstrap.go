// Package bootstrap makes the objects that every cluster has: namespaces, roles
// and bindings, priority classes, the service of the API itself and of cluster
// DNS, the default service range, and the record of how front proxies authenticate.
//
// Ensure can run on every start of every API server: it creates what is missing,
// adds what a newer version needs, and leaves alone what an administrator has changed
// or marked with rbac.authorization.kubernetes.io/autoupdate=false.
package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/resources"
)

// API is how objects are written: the server's own verbs, without HTTP. Update
// retries change on conflict; part is "" or a subresource such as "status".
type API interface {
	Get(ctx context.Context, gr schema.GroupResource, namespace, name string) (resources.Object, error)
	Create(ctx context.Context, gr schema.GroupResource, obj resources.Object) error
	Update(ctx context.Context, gr schema.GroupResource, part, namespace, name string, change func(resources.Object) (resources.Object, error)) error
}

// Config says what the cluster is like.
type Config struct {
	ServiceCIDRs  []netip.Prefix
	SecurePort    int
	ClusterDNS    string            // address of the DNS service; empty: none is made
	FrontProxy    map[string]string // content of kube-system/extension-apiserver-authentication
	Authorization bool              // RBAC is used: make its roles
	// Made is told of every part that is complete, also of those that this cluster does without.
	Made func(Part)
}

// Part is what can be waited for by itself.
type Part string

// Parts of what Ensure makes.
const (
	Namespaces      Part = "the system's namespaces"
	Roles           Part = "the default roles"
	PriorityClasses Part = "the system's priority classes"
	ServiceRange    Part = "the default service range"
	Services        Part = "the services of the API and of DNS"
	FrontProxy      Part = "the record of how front proxies authenticate"
	TokenTracking   Part = "the record of since when uses of tokens in Secrets are noted"
)

// Parts are all of them, in the order in which they are made.
var Parts = []Part{Namespaces, Roles, PriorityClasses, ServiceRange, Services, FrontProxy, TokenTracking}

var (
	grNamespaces      = schema.GroupResource{Resource: "namespaces"}
	grServices        = schema.GroupResource{Resource: "services"}
	grConfigMaps      = schema.GroupResource{Resource: "configmaps"}
	grPriorityClasses = schema.GroupResource{Group: "scheduling.k8s.io", Resource: "priorityclasses"}
	grServiceCIDRs    = schema.GroupResource{Group: "networking.k8s.io", Resource: "servicecidrs"}
	grClusterRoles    = schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterroles"}
	grClusterBindings = schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterrolebindings"}
	grRoles           = schema.GroupResource{Group: rbacv1.GroupName, Resource: "roles"}
	grRoleBindings    = schema.GroupResource{Group: rbacv1.GroupName, Resource: "rolebindings"}
)

// Ensure makes everything. It reports all failures together; a second run completes the first.
func Ensure(ctx context.Context, api API, cfg Config, log *slog.Logger) error {
	var errs []error
	failed := map[Part]bool{}
	do := func(part Part, what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
			failed[part] = true
		}
	}
	create := func(gr schema.GroupResource, obj resources.Object) error {
		have, err := api.Get(ctx, gr, obj.GetNamespace(), obj.GetName())
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if have != nil {
			return nil
		}
		if err := api.Create(ctx, gr, obj); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
		log.Debug("made", "resource", gr.String(), "name", obj.GetName())
		return nil
	}
	for _, ns := range []string{metav1.NamespaceSystem, metav1.NamespaceDefault, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
		do(Namespaces, "namespace "+ns, create(grNamespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}))
	}
	if cfg.Authorization {
		policy, err := DefaultPolicy()
		if err != nil {
			return err
		}
		do(Roles, "default roles", ensurePolicy(ctx, api, create, policy))
	}
	for _, pc := range priorityClasses() {
		do(PriorityClasses, "priority class "+pc.Name, create(grPriorityClasses, pc))
	}
	if len(cfg.ServiceCIDRs) > 0 {
		do(ServiceRange, "service range", ensureServiceCIDR(ctx, api, create, cfg.ServiceCIDRs))
		do(Services, "service default/kubernetes", create(grServices, apiService(cfg)))
		if cfg.ClusterDNS != "" {
			do(Services, "service kube-system/kube-dns", create(grServices, dnsService(cfg.ClusterDNS)))
		}
	}
	if cfg.FrontProxy != nil {
		do(FrontProxy, "config map kube-system/extension-apiserver-authentication", ensureFrontProxy(ctx, api, create, cfg.FrontProxy))
	}
	do(TokenTracking, "config map kube-system/"+tokenTracking, ensureTokenTracking(ctx, api, create, time.Now()))
	for _, p := range Parts {
		if !failed[p] && cfg.Made != nil {
			cfg.Made(p)
		}
	}
	return errors.Join(errs...)
}

// tokenTracking is a ConfigMap that says since what day uses of tokens in Secrets are noted: one that
// says nothing of its use may be old, but not older than that.
const tokenTracking = "kube-apiserver-legacy-service-account-token-tracking"

func ensureTokenTracking(ctx context.Context, api API, create func(schema.GroupResource, resources.Object) error, now time.Time) error {
	const since = "since"
	data := map[string]string{since: now.UTC().Format(time.DateOnly)}
	if err := create(grConfigMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: tokenTracking}, Data: data}); err != nil {
		return err
	}
	return api.Update(ctx, grConfigMaps, "", metav1.NamespaceSystem, tokenTracking, func(o resources.Object) (resources.Object, error) {
		if _, err := time.Parse(time.DateOnly, o.(*corev1.ConfigMap).Data[since]); err == nil {
			return o, nil
		}
		next := o.DeepCopyObject().(*corev1.ConfigMap)
		next.Data = maps.Clone(next.Data)
		if next.Data == nil {
			next.Data = map[string]string{}
		}
		next.Data[since] = data[since]
		return next, nil
	})
}

func priorityClasses() []*schedulingv1.PriorityClass {
	return []*schedulingv1.PriorityClass{
		{
			ObjectMeta: metav1.ObjectMeta{Name: "system-node-critical"}, Value: 2000001000,
			Description: "Used for system critical pods that must not be moved from their current node.",
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: "system-cluster-critical"}, Value: 2000000000,
			Description: "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
		},
	}
}

func ensureServiceCIDR(ctx context.Context, api API, create func(schema.GroupResource, resources.Object) error, cidrs []netip.Prefix) error {
	obj := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}}
	for _, c := range cidrs {
		obj.Spec.CIDRs = append(obj.Spec.CIDRs, c.Masked().String())
	}
	if err := create(grServiceCIDRs, obj); err != nil {
		return err
	}
	have, err := api.Get(ctx, grServiceCIDRs, "", obj.Name)
	if err != nil {
		return err
	}
	if old := have.(*networkingv1.ServiceCIDR).Spec.CIDRs; len(obj.Spec.CIDRs) == 2 && len(old) == 1 && old[0] == obj.Spec.CIDRs[0] {
		// The cluster has got a second family.
		err := api.Update(ctx, grServiceCIDRs, "", "", obj.Name, func(o resources.Object) (resources.Object, error) {
			sc := o.DeepCopyObject().(*networkingv1.ServiceCIDR)
			sc.Spec.CIDRs = obj.Spec.CIDRs
			return sc, nil
		})
		if err != nil {
			return err
		}
	}
	return api.Update(ctx, grServiceCIDRs, "status", "", obj.Name, func(o resources.Object) (resources.Object, error) {
		sc := o.DeepCopyObject().(*networkingv1.ServiceCIDR)
		for _, c := range sc.Status.Conditions {
			if c.Type == networkingv1.ServiceCIDRConditionReady {
				return o, nil
			}
		}
		sc.Status.Conditions = append(sc.Status.Conditions, metav1.Condition{
			Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue, LastTransitionTime: metav1.Now(),
			Reason: "ServiceCIDRReady", Message: "Kubernetes default Service CIDR is ready",
		})
		return sc, nil
	})
}

// apiService is the address under which pods find the API: the first of the service range.
func apiService(cfg Config) *corev1.Service {
	ip := cfg.ServiceCIDRs[0].Masked().Addr().Next().String()
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: "kubernetes", Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, SessionAffinity: corev1.ServiceAffinityNone,
			IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicySingleStack),
			Ports: []corev1.ServicePort{{
				Name: "https", Port: 443, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(int32(cfg.SecurePort)),
			}},
		},
	}
}

// dnsService reserves the address that every node answers DNS on.
func dnsService(ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: "kube-dns", Namespace: metav1.NamespaceSystem,
			Labels: map[string]string{"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{
				{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(53)},
				{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(53)},
			},
		},
	}
}

func ensureFrontProxy(ctx context.Context, api API, create func(schema.GroupResource, resources.Object) error, data map[string]string) error {
	cm := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "extension-apiserver-authentication", Namespace: metav1.NamespaceSystem}, Data: data,
	}
	if err := create(grConfigMaps, cm); err != nil {
		return err
	}
	return api.Update(ctx, grConfigMaps, "", cm.Namespace, cm.Name, func(o resources.Object) (resources.Object, error) {
		have := o.DeepCopyObject().(*corev1.ConfigMap)
		same := true
		for k, v := range data {
			same = same && have.Data[k] == v
		}
		if same {
			return o, nil
		}
		if have.Data == nil {
			have.Data = map[string]string{}
		}
		for k, v := range data {
			have.Data[k] = v
		}
		return have, nil
	})
}

// ensurePolicy creates missing roles and bindings, and adds missing rules and subjects to existing ones.
func ensurePolicy(ctx context.Context, api API, create func(schema.GroupResource, resources.Object) error, p *Policy) error {
	var errs []error
	each := func(gr schema.GroupResource, obj resources.Object, extend func(have resources.Object) bool) {
		if err := create(gr, obj.DeepCopyObject().(resources.Object)); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", gr.Resource, obj.GetName(), err))
			return
		}
		have, err := api.Get(ctx, gr, obj.GetNamespace(), obj.GetName())
		if err != nil || have == nil || have.GetAnnotations()[autoUpdate] == "false" {
			return
		}
		if !extend(have.DeepCopyObject().(resources.Object)) {
			return
		}
		err = api.Update(ctx, gr, "", obj.GetNamespace(), obj.GetName(), func(o resources.Object) (resources.Object, error) {
			c := o.DeepCopyObject().(resources.Object)
			extend(c)
			return c, nil
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", gr.Resource, obj.GetName(), err))
		}
	}
	for _, want := range p.ClusterRoles {
		each(grClusterRoles, want, func(o resources.Object) bool {
			r := o.(*rbacv1.ClusterRole)
			if want.AggregationRule != nil {
				return false
			}
			missing := authz.Covers(r.Rules, want.Rules)
			r.Rules = append(r.Rules, missing...)
			return len(missing) > 0
		})
	}
	for _, want := range p.Roles {
		each(grRoles, want, func(o resources.Object) bool {
			r := o.(*rbacv1.Role)
			missing := authz.Covers(r.Rules, want.Rules)
			r.Rules = append(r.Rules, missing...)
			return len(missing) > 0
		})
	}
	for _, want := range p.ClusterRoleBindings {
		each(grClusterBindings, want, func(o resources.Object) bool {
			b := o.(*rbacv1.ClusterRoleBinding)
			return addSubjects(&b.Subjects, want.Subjects)
		})
	}
	for _, want := range p.RoleBindings {
		each(grRoleBindings, want, func(o resources.Object) bool {
			b := o.(*rbacv1.RoleBinding)
			return addSubjects(&b.Subjects, want.Subjects)
		})
	}
	return errors.Join(errs...)
}

func addSubjects(have *[]rbacv1.Subject, want []rbacv1.Subject) (changed bool) {
	for _, w := range want {
		found := false
		for _, h := range *have {
			found = found || h == w
		}
		if !found {
			*have = append(*have, w)
			changed = true
		}
	}
	return changed
}
