package resources

import (
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"github.com/keelson/keelson/apiserver/resources/check"
)

const (
	ingressClassAnnotation = "kubernetes.io/ingress.class" // the way of old to name a class
	defaultIngressClass    = "ingressclass.kubernetes.io/is-default-class"
)

var ingresses = Resource[networkingv1.Ingress]{
	Group: "networking.k8s.io", Version: "v1", Kind: "Ingress", Plural: "ingresses", WholeMeta: true, Prefix: "ingress", Short: []string{"ing"},
	List: listOf[networkingv1.IngressList],
	Main: mainPart(func(i *networkingv1.Ingress) *networkingv1.IngressStatus { return &i.Status }, validateIngress),
	Status: &Part[networkingv1.Ingress]{
		Prepare:  keepSpec(func(i *networkingv1.Ingress) *networkingv1.IngressSpec { return &i.Spec }),
		Validate: withoutRequest(validateIngressStatus),
		Warnings: func(_ *Request, i, _ *networkingv1.Ingress) []string {
			var out []string
			for n, in := range i.Status.LoadBalancer.Ingress {
				out = append(out, balancerWarnings(n, in.IP)...)
			}
			return out
		},
		Reset: []string{"spec"},
	},
	Docs: map[string]string{
		"Class":   "The IngressClass that says who serves it.",
		"Hosts":   "The hosts whose requests it routes.",
		"Address": "Where it is reached.",
		"Ports":   "80, and 443 with TLS.",
	},
	Columns: []Column[networkingv1.Ingress]{
		text("Class", func(i *networkingv1.Ingress) string { return valueOr(i.Spec.IngressClassName, "<none>") }),
		text("Hosts", func(i *networkingv1.Ingress) string {
			var out []string
			for _, r := range i.Spec.Rules {
				if r.Host != "" {
					out = append(out, r.Host)
				}
			}
			if len(out) == 0 {
				return "*"
			}
			return more(out, 3)
		}),
		text("Address", func(i *networkingv1.Ingress) string {
			var out []string
			for _, in := range i.Status.LoadBalancer.Ingress {
				v := in.IP
				def(&v, in.Hostname)
				if v != "" && !slices.Contains(out, v) {
					out = append(out, v)
				}
			}
			sort.Strings(out)
			return strings.Join(out, ",")
		}),
		text("Ports", func(i *networkingv1.Ingress) string {
			if len(i.Spec.TLS) > 0 {
				return "80, 443"
			}
			return "80"
		}),
		ageColumn[networkingv1.Ingress](),
	},
}

func validateIngressStatus(i, old *networkingv1.Ingress) field.ErrorList {
	var f check.Faults
	p := field.NewPath("status", "loadBalancer", "ingress")
	var known []string
	for _, in := range old.Status.LoadBalancer.Ingress {
		known = append(known, in.IP)
	}
	for n, in := range i.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			f.IP(p.Index(n).Child("ip"), in.IP, known...)
		}
		if in.Hostname != "" {
			f.Subdomain(p.Index(n).Child("hostname"), in.Hostname)
			notIP(&f, in.Hostname, p.Index(n).Child("hostname"))
		}
	}
	return f.List()
}

// balancerWarnings are about the address of the nth balancer in a status.
func balancerWarnings(n int, ip string) []string {
	if ip == "" {
		return nil
	}
	return validation.GetWarningsForIP(field.NewPath("status", "loadBalancer", "ingress").Index(n), ip)
}

func notIP(f *check.Faults, host string, p *field.Path) {
	if _, ok := check.ParseIP(host); ok {
		f.Invalid(p, host, "must be a DNS name, not an IP address")
	}
}

func validateHost(f *check.Faults, host string, p *field.Path) {
	if strings.Contains(host, "*") {
		f.Each(p, host, validation.IsWildcardDNS1123Subdomain(host))
	} else {
		f.Subdomain(p, host)
	}
}

func validateIngress(i, old *networkingv1.Ingress) field.ErrorList {
	var f check.Faults
	s, p := &i.Spec, field.NewPath("spec")
	if a := i.Annotations[ingressClassAnnotation]; old == nil && a != "" && s.IngressClassName != nil && a != *s.IngressClassName {
		f.Invalid(field.NewPath("annotations").Child(ingressClassAnnotation), a, "must match `ingressClassName` when both are specified")
	}
	if len(s.Rules) == 0 && s.DefaultBackend == nil {
		f.Invalid(p, s.Rules, "either `defaultBackend` or `rules` must be specified")
	}
	if s.DefaultBackend != nil {
		validateBackend(&f, s.DefaultBackend, p.Child("defaultBackend"))
	}
	for n, r := range s.Rules {
		at := p.Child("rules").Index(n)
		if r.Host != "" {
			notIP(&f, r.Host, at.Child("host"))
			validateHost(&f, r.Host, at.Child("host"))
		}
		if r.HTTP == nil {
			continue
		}
		at = at.Child("http", "paths")
		if len(r.HTTP.Paths) == 0 {
			f.Required(at, "")
		}
		for m := range r.HTTP.Paths {
			validatePath(&f, &r.HTTP.Paths[m], at.Index(m))
		}
	}
	for n, t := range s.TLS {
		at := p.Child("tls").Index(n)
		for m, h := range t.Hosts {
			validateHost(&f, h, at.Child("hosts").Index(m))
		}
		if t.SecretName != "" {
			f.Subdomain(at.Child("secretName"), t.SecretName)
		}
	}
	if s.IngressClassName != nil {
		f.Subdomain(p.Child("ingressClassName"), *s.IngressClassName)
	}
	return f.List()
}

func validatePath(f *check.Faults, h *networkingv1.HTTPIngressPath, p *field.Path) {
	at := p.Child("path")
	if h.PathType == nil {
		f.Required(p.Child("pathType"), "pathType must be specified")
		return
	}
	switch *h.PathType {
	case networkingv1.PathTypeExact, networkingv1.PathTypePrefix:
		if !strings.HasPrefix(h.Path, "/") {
			f.Invalid(at, h.Path, "must be an absolute path")
		}
		for _, bad := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(h.Path, bad) {
				f.Invalid(at, h.Path, "must not contain '"+bad+"'")
			}
		}
		for _, bad := range []string{"/..", "/."} {
			if strings.HasSuffix(h.Path, bad) {
				f.Invalid(at, h.Path, "cannot end with '"+bad+"'")
			}
		}
	case networkingv1.PathTypeImplementationSpecific:
		if h.Path != "" && !strings.HasPrefix(h.Path, "/") {
			f.Invalid(at, h.Path, "must be an absolute path")
		}
	default:
		check.Among(f, p.Child("pathType"), *h.PathType, networkingv1.PathTypeExact, networkingv1.PathTypePrefix, networkingv1.PathTypeImplementationSpecific)
	}
	validateBackend(f, &h.Backend, p.Child("backend"))
}

func validateBackend(f *check.Faults, b *networkingv1.IngressBackend, p *field.Path) {
	switch {
	case b.Resource != nil && b.Service != nil:
		f.Invalid(p, "", "cannot set both resource and service backends")
	case b.Resource != nil:
		validateReference(f, b.Resource.APIGroup, b.Resource.Kind, b.Resource.Name, p.Child("resource"))
	case b.Service != nil:
		f.NeedName(p.Child("service", "name"), b.Service.Name, validation.IsDNS1123Label)
		switch port := b.Service.Port; {
		case port.Name != "" && port.Number != 0:
			f.Invalid(p, "", "cannot set both port name & port number")
		case port.Name != "":
			f.Each(p.Child("service", "port", "name"), port.Name, validation.IsValidPortName(port.Name))
		case port.Number != 0:
			f.Port(p.Child("service", "port", "number"), port.Number)
		default:
			f.Required(p, "port name or number is required")
		}
	default:
		f.Invalid(p, "", "resource or service backend is required")
	}
}

func validateReference(f *check.Faults, group *string, kind, name string, p *field.Path) {
	if group != nil {
		f.Subdomain(p.Child("apiGroup"), *group)
	}
	f.Segment(p.Child("kind"), kind)
	f.Segment(p.Child("name"), name)
}

var ingressClasses = Resource[networkingv1.IngressClass]{
	Group: "networking.k8s.io", Version: "v1", Kind: "IngressClass", Plural: "ingressclasses", WholeMeta: true, Prefix: "ingressclasses", Scope: Cluster,
	List: listOf[networkingv1.IngressClassList],
	Default: func(c *networkingv1.IngressClass) {
		if c.Spec.Parameters != nil {
			defPtr(&c.Spec.Parameters.Scope, networkingv1.IngressClassParametersReferenceScopeCluster)
		}
	},
	Main: plainPart(func(c, old *networkingv1.IngressClass) field.ErrorList {
		var f check.Faults
		p := field.NewPath("spec")
		if old != nil {
			f.Same(p.Child("controller"), c.Spec.Controller, old.Spec.Controller)
		}
		if len(c.Spec.Controller) > 250 {
			f.TooLong(p.Child("controller"), "", 250)
		}
		f.Add(validation.IsDomainPrefixedPath(p.Child("controller"), c.Spec.Controller))
		if r := c.Spec.Parameters; r != nil {
			at := p.Child("parameters")
			validateReference(&f, r.APIGroup, r.Kind, r.Name, at)
			if r.Scope == nil {
				f.Required(at.Child("scope"), "")
				return f.List()
			}
			switch scope := *r.Scope; scope {
			case networkingv1.IngressClassParametersReferenceScopeNamespace:
				if r.Namespace == nil {
					f.Required(at.Child("namespace"), "`parameters.scope` is set to 'Namespace'")
				} else {
					f.Label(at.Child("namespace"), *r.Namespace)
				}
			case networkingv1.IngressClassParametersReferenceScopeCluster:
				if r.Namespace != nil {
					f.Forbidden(at.Child("namespace"), "`parameters.scope` is set to 'Cluster'")
				}
			default:
				check.Among(&f, at.Child("scope"), scope, networkingv1.IngressClassParametersReferenceScopeCluster, networkingv1.IngressClassParametersReferenceScopeNamespace)
			}
		}
		return f.List()
	}),
	Docs: map[string]string{
		"Controller": "Who serves ingresses of the class.",
		"Parameters": "The object with further parameters.",
	},
	Columns: []Column[networkingv1.IngressClass]{
		defaultNameColumn[networkingv1.IngressClass](defaultIngressClass),
		text("Controller", func(c *networkingv1.IngressClass) string { return c.Spec.Controller }),
		text("Parameters", func(c *networkingv1.IngressClass) string {
			r := c.Spec.Parameters
			if r == nil {
				return "<none>"
			}
			kind := r.Kind
			if r.APIGroup != nil {
				kind += "." + *r.APIGroup
			}
			return kind + "/" + r.Name
		}),
		ageColumn[networkingv1.IngressClass](),
	},
}

var networkPolicies = Resource[networkingv1.NetworkPolicy]{
	Group: "networking.k8s.io", Version: "v1", Kind: "NetworkPolicy", Plural: "networkpolicies", Prefix: "networkpolicies", Short: []string{"netpol"},
	List: listOf[networkingv1.NetworkPolicyList],
	Default: func(n *networkingv1.NetworkPolicy) {
		if len(n.Spec.PolicyTypes) == 0 {
			n.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
			if len(n.Spec.Egress) > 0 {
				n.Spec.PolicyTypes = append(n.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
			}
		}
		ports := func(list []networkingv1.NetworkPolicyPort) {
			for i := range list {
				defPtr(&list[i].Protocol, corev1.ProtocolTCP)
			}
		}
		for i := range n.Spec.Ingress {
			ports(n.Spec.Ingress[i].Ports)
		}
		for i := range n.Spec.Egress {
			ports(n.Spec.Egress[i].Ports)
		}
	},
	Main: Part[networkingv1.NetworkPolicy]{
		Validate: withoutRequest(validateNetworkPolicy),
		Warnings: func(_ *Request, n, _ *networkingv1.NetworkPolicy) []string {
			var out []string
			eachBlock(n, func(b *networkingv1.IPBlock, p *field.Path) {
				out = append(out, validation.GetWarningsForCIDR(p.Child("cidr"), b.CIDR)...)
				for i, except := range b.Except {
					out = append(out, validation.GetWarningsForCIDR(p.Child("except").Index(i), except)...)
				}
			})
			return out
		},
	},
	Docs: map[string]string{"Pod-Selector": networkingv1.NetworkPolicySpec{}.SwaggerDoc()["podSelector"]},
	Columns: []Column[networkingv1.NetworkPolicy]{
		text("Pod-Selector", func(n *networkingv1.NetworkPolicy) string { return selectorText(&n.Spec.PodSelector) }),
		ageColumn[networkingv1.NetworkPolicy](),
	},
}

func validateNetworkPolicy(n, old *networkingv1.NetworkPolicy) field.ErrorList {
	var f check.Faults
	p := field.NewPath("spec")
	var known []string
	if old != nil {
		eachBlock(old, func(b *networkingv1.IPBlock, _ *field.Path) { known = append(append(known, b.CIDR), b.Except...) })
	}
	f.Add(selectorFaults(&n.Spec.PodSelector, p.Child("podSelector")))
	for i, r := range n.Spec.Ingress {
		validatePolicyRule(&f, r.Ports, r.From, known, "from", p.Child("ingress").Index(i))
	}
	for i, r := range n.Spec.Egress {
		validatePolicyRule(&f, r.Ports, r.To, known, "to", p.Child("egress").Index(i))
	}
	if len(n.Spec.PolicyTypes) > 2 {
		f.Invalid(p.Child("policyTypes"), n.Spec.PolicyTypes, "may not specify more than two policyTypes")
		return f.List()
	}
	for i, t := range n.Spec.PolicyTypes {
		check.Listed(&f, p.Child("policyTypes").Index(i), t, networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress)
	}
	return f.List()
}

// eachBlock visits the ranges of addresses that a policy names.
func eachBlock(n *networkingv1.NetworkPolicy, visit func(*networkingv1.IPBlock, *field.Path)) {
	peers := func(list []networkingv1.NetworkPolicyPeer, p *field.Path) {
		for i, peer := range list {
			if peer.IPBlock != nil {
				visit(peer.IPBlock, p.Index(i).Child("ipBlock"))
			}
		}
	}
	p := field.NewPath("spec")
	for i, r := range n.Spec.Ingress {
		peers(r.From, p.Child("ingress").Index(i).Child("from"))
	}
	for i, r := range n.Spec.Egress {
		peers(r.To, p.Child("egress").Index(i).Child("to"))
	}
}

// validatePolicyRule: known are ranges that were stored under older rules.
func validatePolicyRule(f *check.Faults, ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer, known []string, side string, p *field.Path) {
	for i, port := range ports {
		at := p.Child("ports").Index(i)
		if port.Protocol != nil {
			check.Listed(f, at.Child("protocol"), *port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		}
		if port.Port != nil {
			f.PortOrName(at.Child("port"), *port.Port)
		}
		if end := port.EndPort; end != nil {
			at := at.Child("endPort")
			switch {
			case port.Port == nil:
				f.Invalid(at, *end, "may not be specified when `port` is not specified")
			case port.Port.Type == intstr.String:
				f.Invalid(at, *end, "may not be specified when `port` is non-numeric")
			case *end < port.Port.IntVal:
				f.Invalid(at, port.Port.IntVal, "must be greater than or equal to `port`")
			}
			if port.Port != nil && port.Port.Type == intstr.Int {
				f.Port(at, *end)
			}
		}
	}
	for i, peer := range peers {
		at, selectors := p.Child(side).Index(i), 0
		if peer.PodSelector != nil {
			selectors++
			f.Add(selectorFaults(peer.PodSelector, at.Child("podSelector")))
		}
		if peer.NamespaceSelector != nil {
			selectors++
			f.Add(selectorFaults(peer.NamespaceSelector, at.Child("namespaceSelector")))
		}
		switch b := peer.IPBlock; {
		case b == nil && selectors == 0:
			f.Required(at, "must specify a peer")
		case b != nil:
			if selectors > 0 {
				f.Forbidden(at, "may not specify both ipBlock and another peer")
			}
			at := at.Child("ipBlock")
			if !f.Need(at.Child("cidr"), b.CIDR) {
				break
			}
			f.CIDR(at.Child("cidr"), b.CIDR, known...)
			_, whole, err := netutils.ParseCIDRSloppy(b.CIDR)
			if err != nil {
				break
			}
			for j, except := range b.Except {
				at := at.Child("except").Index(j)
				f.CIDR(at, except, known...)
				_, part, err := netutils.ParseCIDRSloppy(except)
				if err != nil {
					continue
				}
				bits, _ := part.Mask.Size()
				if all, _ := whole.Mask.Size(); !whole.Contains(part.IP) || bits <= all {
					f.Invalid(at, except, "must be a strict subset of `cidr`")
				}
			}
		}
	}
}
