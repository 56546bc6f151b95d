package resources

import (
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

var endpoints = Resource[corev1.Endpoints]{
	Group: "", Version: "v1", Kind: "Endpoints", Plural: "endpoints", WholeMeta: true, Prefix: "services/endpoints", Short: []string{"ep"},
	List: listOf[corev1.EndpointsList], CreateOnUpdate: true, NoGeneration: true,
	Default: func(e *corev1.Endpoints) {
		for i := range e.Subsets {
			for j := range e.Subsets[i].Ports {
				def(&e.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
			}
		}
	},
	Main: Part[corev1.Endpoints]{
		Validate: withoutRequest(validateEndpoints),
		Warnings: func(rq *Request, e, _ *corev1.Endpoints) []string {
			var out []string
			if !strings.HasPrefix(rq.User, "system:") {
				out = append(out, "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
			}
			for i, s := range e.Subsets {
				warn := func(list []corev1.EndpointAddress, p *field.Path) {
					for j, a := range list {
						out = append(out, validation.GetWarningsForIP(p.Index(j).Child("ip"), a.IP)...)
					}
				}
				at := field.NewPath("subsets").Index(i)
				warn(s.Addresses, at.Child("addresses"))
				warn(s.NotReadyAddresses, at.Child("notReadyAddresses"))
			}
			return out
		},
	},
	Docs: map[string]string{
		"Endpoints": corev1.Endpoints{}.SwaggerDoc()["subsets"],
	},
	Columns: []Column[corev1.Endpoints]{
		text("Endpoints", endpointsText),
		ageColumn[corev1.Endpoints](),
	},
}

// endpointsText shows three addresses and how many more there are.
func endpointsText(e *corev1.Endpoints) string {
	if len(e.Subsets) == 0 {
		return "<none>"
	}
	var list []string
	for _, s := range e.Subsets {
		if len(s.Ports) == 0 {
			for _, a := range s.Addresses {
				list = append(list, a.IP)
			}
		}
		for _, p := range s.Ports {
			for _, a := range s.Addresses {
				list = append(list, hostPort(a.IP, p.Port))
			}
		}
	}
	return more(list, 3)
}

func validateEndpoints(e, old *corev1.Endpoints) field.ErrorList {
	if old != nil && equality.Semantic.DeepEqual(e.Subsets, old.Subsets) {
		return nil // what was stored under older rules may stay
	}
	var f check.Faults
	for i, s := range e.Subsets {
		at := field.NewPath("subsets").Index(i)
		if len(s.Addresses)+len(s.NotReadyAddresses) == 0 {
			f.Required(at, "must specify `addresses` or `notReadyAddresses`")
		}
		addresses := func(list []corev1.EndpointAddress, p *field.Path) {
			for j, a := range list {
				f.IP(p.Index(j).Child("ip"), a.IP)
				f.EndpointIP(p.Index(j).Child("ip"), a.IP)
				if a.Hostname != "" {
					f.Label(p.Index(j).Child("hostname"), a.Hostname)
				}
				if a.NodeName != nil {
					f.Subdomain(p.Index(j).Child("nodeName"), *a.NodeName)
				}
			}
		}
		addresses(s.Addresses, at.Child("addresses"))
		addresses(s.NotReadyAddresses, at.Child("notReadyAddresses"))
		for j, p := range s.Ports {
			at := at.Child("ports").Index(j)
			if p.Name != "" {
				f.Label(at.Child("name"), p.Name)
			} else if len(s.Ports) > 1 {
				f.Required(at.Child("name"), "")
			}
			f.Port(at.Child("port"), p.Port)
			check.OneOf(&f, at.Child("protocol"), p.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
			if p.AppProtocol != nil {
				f.QualifiedName(at.Child("appProtocol"), *p.AppProtocol)
			}
		}
	}
	return f.List()
}

// hostPort writes an address and a port as users read them.
func hostPort(ip string, port int32) string {
	if strings.Contains(ip, ":") {
		ip = "[" + ip + "]"
	}
	return ip + ":" + strconv.Itoa(int(port))
}
