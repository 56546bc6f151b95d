package resources

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

type endpointSlice = discoveryv1.EndpointSlice

// Bounds of one slice. Source: discovery.k8s.io/v1 API reference.
const (
	sliceEndpointsMax = 1000
	sliceAddressesMax = 100
	slicePortsMax     = 20_000
	sliceHintsMax     = 8
)

var endpointSlices = Resource[endpointSlice]{
	Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice", LooseMeta: true, Plural: "endpointslices", WholeMeta: true, Prefix: "endpointslices",
	List: listOf[discoveryv1.EndpointSliceList],
	Default: func(s *endpointSlice) {
		for i := range s.Ports {
			defPtr(&s.Ports[i].Name, "")
			defPtr(&s.Ports[i].Protocol, corev1.ProtocolTCP)
		}
	},
	Main: Part[endpointSlice]{
		// Labels say whose slice it is: they count as a change of it.
		Prepare: func(_ *Request, s, old *endpointSlice) {
			if old != nil && !equality.Semantic.DeepEqual(s.Labels, old.Labels) {
				s.Generation = old.Generation + 1
			}
			for i := range s.Endpoints {
				s.Endpoints[i].DeprecatedTopology = nil // v1 has nodeName and zone instead
			}
		},
		Validate: withoutRequest(validateEndpointSlice),
		Warnings: func(_ *Request, s, old *endpointSlice) []string {
			var out []string
			if old == nil && s.AddressType == discoveryv1.AddressTypeFQDN {
				out = append(out, "spec.addressType: FQDN endpoints are deprecated")
			}
			for i, e := range s.Endpoints {
				for j, a := range e.Addresses {
					if _, ok := check.ParseIP(a); ok {
						out = append(out, validation.GetWarningsForIP(field.NewPath("endpoints").Index(i).Child("addresses").Index(j), a)...)
					}
				}
			}
			return out
		},
	},
	Docs: map[string]string{
		"AddressType": discoveryv1.EndpointSlice{}.SwaggerDoc()["addressType"],
		"Ports":       discoveryv1.EndpointSlice{}.SwaggerDoc()["ports"],
		"Endpoints":   discoveryv1.EndpointSlice{}.SwaggerDoc()["endpoints"],
	},
	Columns: []Column[endpointSlice]{
		text("AddressType", func(s *endpointSlice) string { return string(s.AddressType) }),
		text("Ports", func(s *endpointSlice) string {
			var out []string
			for _, p := range s.Ports {
				switch {
				case p.Port != nil:
					out = append(out, strconv.Itoa(int(*p.Port)))
				case p.Name != nil:
					out = append(out, *p.Name)
				default:
					out = append(out, "*")
				}
			}
			return unsetOr(out)
		}),
		text("Endpoints", func(s *endpointSlice) string {
			var out []string
			for _, e := range s.Endpoints {
				out = append(out, e.Addresses...)
			}
			return unsetOr(out)
		}),
		ageColumn[endpointSlice](),
	},
}

func unsetOr(list []string) string {
	if out := more(list, 3); out != "" {
		return out
	}
	return "<unset>"
}

func validateEndpointSlice(s, old *endpointSlice) field.ErrorList {
	var f check.Faults
	check.OneOf(&f, field.NewPath("addressType"), s.AddressType, discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)
	if old != nil {
		f.Same(field.NewPath("addressType"), s.AddressType, old.AddressType)
	}
	endpoints, ports := field.NewPath("endpoints"), field.NewPath("ports")
	if n := len(s.Endpoints); n > sliceEndpointsMax {
		f.TooMany(endpoints, n, sliceEndpointsMax)
		return f.List()
	}
	for i, e := range s.Endpoints {
		at := endpoints.Index(i)
		if n := len(e.Addresses); n == 0 {
			f.Required(at.Child("addresses"), "must contain at least 1 address")
		} else if n > sliceAddressesMax {
			f.TooMany(at.Child("addresses"), n, sliceAddressesMax)
		}
		for j, a := range e.Addresses {
			list := at.Child("addresses")
			at := list.Index(j)
			var faults field.ErrorList
			switch s.AddressType {
			case discoveryv1.AddressTypeFQDN:
				f.Add(validation.IsFullyQualifiedDomainName(at, a))
				continue
			case discoveryv1.AddressTypeIPv4:
				faults = validation.IsValidIPForLegacyField(at, a, true, nil)
			case discoveryv1.AddressTypeIPv6:
				faults = validation.IsValidIP(at, a)
			default:
				continue
			}
			if len(faults) > 0 {
				f.Add(faults)
				continue
			}
			if ip, _ := check.ParseIP(a); string(familyOf(ip)) != string(s.AddressType) {
				f.Invalid(list, a, fmt.Sprintf("must be an %s address", s.AddressType))
			}
			f.EndpointIP(at, a)
		}
		if e.NodeName != nil {
			f.Subdomain(at.Child("nodeName"), *e.NodeName)
		}
		if e.Hostname != nil {
			f.Label(at.Child("hostname"), *e.Hostname)
		}
		if h := e.Hints; h != nil {
			zones, nodes := check.Seen[string]{}, check.Seen[string]{}
			if !atMost(&f, at.Child("hints", "forZones"), len(h.ForZones), sliceHintsMax) {
				continue
			}
			for j, z := range h.ForZones {
				at := at.Child("hints", "forZones").Index(j).Child("name")
				f.Each(at, z.Name, validation.IsValidLabelValue(z.Name))
				if zones.Again(z.Name) {
					f.Duplicate(at, z.Name)
				}
			}
			if !atMost(&f, at.Child("hints", "forNodes"), len(h.ForNodes), sliceHintsMax) {
				continue
			}
			for j, n := range h.ForNodes {
				at := at.Child("hints", "forNodes").Index(j).Child("name")
				f.Subdomain(at, n.Name)
				if nodes.Again(n.Name) {
					f.Duplicate(at, n.Name)
				}
			}
		}
	}
	if n := len(s.Ports); n > slicePortsMax {
		f.TooMany(ports, n, slicePortsMax)
		return f.List()
	}
	names := check.Seen[string]{}
	for i, p := range s.Ports {
		at := ports.Index(i)
		if name := valueOr(p.Name, ""); name != "" {
			f.Label(at.Child("name"), name)
		}
		if names.Again(valueOr(p.Name, "")) {
			f.Duplicate(at.Child("name"), valueOr(p.Name, ""))
		}
		check.Among(&f, at.Child("protocol"), valueOr(p.Protocol, ""), corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		if p.AppProtocol != nil {
			f.QualifiedName(at.Child("appProtocol"), *p.AppProtocol)
		}
	}
	return f.List()
}
