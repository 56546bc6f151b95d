package resources

import (
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"github.com/keelson/keelson/apiserver/resources/check"
)

var ipAddresses = Resource[networkingv1.IPAddress]{
	Group: "networking.k8s.io", Version: "v1", Kind: "IPAddress", Plural: "ipaddresses", WholeMeta: true, Singular: "ipaddress", Prefix: "ipaddresses", NoGeneration: true,
	Short: []string{"ip"}, Scope: Cluster, List: listOf[networkingv1.IPAddressList],
	// The name is the address in canonical form.
	Name: func(name string, _ bool) []string {
		var out []string
		for _, fault := range validation.IsValidIP(nil, name) {
			out = append(out, fault.Detail)
		}
		return out
	},
	Main: plainPart(func(a, old *networkingv1.IPAddress) field.ErrorList {
		var f check.Faults
		p := field.NewPath("spec", "parentRef")
		if r := a.Spec.ParentRef; r == nil {
			f.Required(p, "")
		} else {
			if r.Group != "" {
				f.Subdomain(p.Child("group"), r.Group)
			}
			f.Segment(p.Child("resource"), r.Resource)
			f.Segment(p.Child("name"), r.Name)
			if r.Namespace != "" {
				f.Each(p.Child("namespace"), r.Namespace, pathvalidation.IsValidPathSegmentName(r.Namespace))
			}
		}
		if old != nil {
			f.Same(p, a.Spec.ParentRef, old.Spec.ParentRef)
		}
		return f.List()
	}),
	Docs: map[string]string{
		"ParentRef": networkingv1.IPAddressSpec{}.SwaggerDoc()["parentRef"],
	},
	Columns: []Column[networkingv1.IPAddress]{
		text("ParentRef", func(a *networkingv1.IPAddress) string {
			r := a.Spec.ParentRef
			if r == nil {
				return "<none>"
			}
			out := strings.ToLower(schema.GroupResource{Group: r.Group, Resource: r.Resource}.String())
			if r.Namespace != "" {
				out += "/" + r.Namespace
			}
			return out + "/" + r.Name
		}),
		ageColumn[networkingv1.IPAddress](),
	},
}

var serviceCIDRs = Resource[networkingv1.ServiceCIDR]{
	Group: "networking.k8s.io", Version: "v1", Kind: "ServiceCIDR", Plural: "servicecidrs", Prefix: "servicecidrs", Scope: Cluster, NoGeneration: true,
	List: listOf[networkingv1.ServiceCIDRList],
	Main: mainPart(func(c *networkingv1.ServiceCIDR) *networkingv1.ServiceCIDRStatus { return &c.Status }, validateServiceCIDR),
	// Upstream has no rule for the conditions: those that it sets itself carry no reason.
	Status: keepMeta(statusPart(func(c *networkingv1.ServiceCIDR) *networkingv1.ServiceCIDRSpec { return &c.Spec },
		func(_, _ *networkingv1.ServiceCIDR) field.ErrorList { return nil })),
	Docs: map[string]string{
		"CIDRs": networkingv1.ServiceCIDRSpec{}.SwaggerDoc()["cidrs"],
	},
	Columns: []Column[networkingv1.ServiceCIDR]{
		text("CIDRs", func(c *networkingv1.ServiceCIDR) string { return strings.Join(c.Spec.CIDRs, ",") }),
		ageColumn[networkingv1.ServiceCIDR](),
	},
}

// validateServiceCIDR: a second family may be added; nothing else changes.
func validateServiceCIDR(c, old *networkingv1.ServiceCIDR) field.ErrorList {
	var f check.Faults
	p := field.NewPath("spec", "cidrs")
	if old != nil {
		now, was := c.Spec.CIDRs, old.Spec.CIDRs
		second := len(was) == 1 && len(now) == 2
		if !second && len(now) != len(was) {
			f.Invalid(p, now, check.Immutable)
			return f.List()
		}
		for i := range was {
			f.Same(p.Index(i), now[i], was[i])
		}
		if !second {
			return f.List()
		}
	}
	if len(c.Spec.CIDRs) == 0 {
		f.Required(p, "at least one CIDR required")
		return f.List()
	}
	if len(c.Spec.CIDRs) > 2 {
		f.Invalid(p, check.Shown(c.Spec), "may only hold up to 2 values")
		return f.List()
	}
	families := map[netutils.IPFamily]int{}
	for i, r := range c.Spec.CIDRs {
		f.Add(validation.IsValidCIDR(p.Index(i), r))
		families[netutils.IPFamilyOfCIDRString(r)]++
	}
	if families[netutils.IPv4] > 1 || families[netutils.IPv6] > 1 {
		f.Invalid(p, c.Spec.CIDRs, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64")
	}
	return f.List()
}
