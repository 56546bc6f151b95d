package admission

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/resources"
)

// Config is what the plugins need to know.
type Config struct {
	Read       resources.Reader
	Authorizer authz.Authorizer
	RBAC       *authz.RBAC // nil: no escalation checks
	Now        func() time.Time
	// Rev returns the newest revision that Read shows: quota waits for it after a conflict.
	UpdateQuota func(namespace, name string, change func(*corev1.ResourceQuota) error) error
	// Metrics is where the plugins count; nil: nowhere.
	Metrics prometheus.Registerer
	// Dynamic are the webhooks and policies that the cluster's users have configured.
	Dynamic []Plugin
}

// Table is the chain in the order in which it runs. Names and order are upstream's: of several faults the first one
// is told. The names are for --enable-admission-plugins and --disable-admission-plugins.
func Table(cfg Config) Chain {
	chain := Chain{
		namespaceLifecycle(cfg),
		limitRanger(cfg),
		serviceAccount(cfg),
		nodeRestriction(cfg),
		taintNodesByCondition(),
		podSecurity(cfg),
		priority(cfg),
		defaultTolerationSeconds(),
		defaultStorageClass(cfg),
		storageObjectInUseProtection(),
		persistentVolumeClaimResize(cfg),
		runtimeClass(cfg),
		certificateApproval(cfg),
		certificateSigning(cfg),
		certificateSubjectRestriction(),
		defaultIngressClass(cfg),
		rbacEscalation(cfg),
		nodeFeatures(cfg),
		podResize(cfg),
	}
	chain = append(chain, cfg.Dynamic...)
	// Last: it reserves, and must do so only for what everybody else lets through.
	return append(chain, resourceQuota(cfg))
}

// Pick returns the chain without the plugins in off, and without those of
// optional that are not in on. Unknown names are returned for the error message.
func Pick(c Chain, off []string) (out Chain, unknown []string) {
	drop := map[string]bool{}
	for _, n := range off {
		drop[n] = true
	}
	for _, p := range c {
		if drop[p.Name] {
			delete(drop, p.Name)
			continue
		}
		out = append(out, p)
	}
	for n := range drop {
		unknown = append(unknown, n)
	}
	return out, unknown
}

// forbid is the 403 that a plugin answers with.
func forbid(a *Attributes, err error) error {
	return apierrors.NewForbidden(a.Row.GR(), a.Called(), err)
}

// Called is how messages call the object of the request.
func (a *Attributes) Called() string {
	if a.Name == "" && a.Object == nil {
		return "Unknown"
	}
	return a.Name
}

// is reports whether the request is about the resource itself, not a subresource.
func (a *Attributes) is(gr schema.GroupResource) bool {
	return a.Subresource == "" && a.Row.GR() == gr
}

var (
	grPods              = schema.GroupResource{Resource: "pods"}
	grNodes             = schema.GroupResource{Resource: "nodes"}
	grNamespaces        = schema.GroupResource{Resource: "namespaces"}
	grServices          = schema.GroupResource{Resource: "services"}
	grServiceAccounts   = schema.GroupResource{Resource: "serviceaccounts"}
	grSecrets           = schema.GroupResource{Resource: "secrets"}
	grLimitRanges       = schema.GroupResource{Resource: "limitranges"}
	grQuotas            = schema.GroupResource{Resource: "resourcequotas"}
	grClaims            = schema.GroupResource{Resource: "persistentvolumeclaims"}
	grVolumes           = schema.GroupResource{Resource: "persistentvolumes"}
	grStorageClasses    = schema.GroupResource{Group: "storage.k8s.io", Resource: "storageclasses"}
	grAttributesClasses = schema.GroupResource{Group: "storage.k8s.io", Resource: "volumeattributesclasses"}
	grCSINodes          = schema.GroupResource{Group: "storage.k8s.io", Resource: "csinodes"}
	grPriorityClasses   = schema.GroupResource{Group: "scheduling.k8s.io", Resource: "priorityclasses"}
	grRuntimeClasses    = schema.GroupResource{Group: "node.k8s.io", Resource: "runtimeclasses"}
	grIngresses         = schema.GroupResource{Group: "networking.k8s.io", Resource: "ingresses"}
	grIngressClasses    = schema.GroupResource{Group: "networking.k8s.io", Resource: "ingressclasses"}
	grDeviceClasses     = schema.GroupResource{Group: "resource.k8s.io", Resource: "deviceclasses"}
	grResourceClaims    = schema.GroupResource{Group: "resource.k8s.io", Resource: "resourceclaims"}
	grLeases            = schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}
	grCSRs              = schema.GroupResource{Group: "certificates.k8s.io", Resource: "certificatesigningrequests"}
	grRoles             = schema.GroupResource{Group: rbacv1.GroupName, Resource: "roles"}
	grRoleBindings      = schema.GroupResource{Group: rbacv1.GroupName, Resource: "rolebindings"}
	grClusterRoles      = schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterroles"}
	grClusterBindings   = schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterrolebindings"}
)

// pod returns the pod of a request on pods themselves, nil for anything else.
func (a *Attributes) pod() *corev1.Pod {
	if !a.is(grPods) {
		return nil
	}
	p, _ := a.Object.(*corev1.Pod)
	return p
}

// kubelet returns the node whose kubelet sends the request.
func (a *Attributes) kubelet() (string, bool) {
	if a.User == nil || !a.User.In(authn.GroupNodes) {
		return "", false
	}
	return authz.NodeName(a.User)
}
