package podrules

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// deprecatedNodeLabels and what to use instead.
var deprecatedNodeLabels = map[string]string{
	"beta.kubernetes.io/arch":                  `deprecated since v1.14; use "kubernetes.io/arch" instead`,
	"beta.kubernetes.io/os":                    `deprecated since v1.14; use "kubernetes.io/os" instead`,
	"failure-domain.beta.kubernetes.io/region": `deprecated since v1.17; use "topology.kubernetes.io/region" instead`,
	"failure-domain.beta.kubernetes.io/zone":   `deprecated since v1.17; use "topology.kubernetes.io/zone" instead`,
	"beta.kubernetes.io/instance-type":         `deprecated since v1.17; use "node.kubernetes.io/instance-type" instead`,
}

// Warnings are about what is allowed but rarely meant.
func Warnings(s *corev1.PodSpec, p *field.Path) []string {
	var out []string
	for k := range s.NodeSelector {
		if msg, ok := deprecatedNodeLabels[k]; ok {
			out = append(out, fmt.Sprintf("%s: %s", p.Child("nodeSelector").Key(k), msg))
		}
	}
	for i, a := range s.HostAliases {
		for j := range i {
			if s.HostAliases[j].IP == a.IP {
				out = append(out, fmt.Sprintf("%s: may be ignored; duplicate of %s", p.Child("hostAliases").Index(i).Child("ip"), p.Child("hostAliases").Index(j).Child("ip")))
				break
			}
		}
	}
	eachContainer(s, p, func(c *corev1.Container, at *field.Path) {
		env := map[string]bool{}
		for i, e := range c.Env {
			if env[e.Name] {
				out = append(out, fmt.Sprintf("%s: hides previous definition of %q, which may be dropped when using apply", at.Child("env").Index(i), e.Name))
			}
			env[e.Name] = true
		}
		ports := map[string]*field.Path{}
		for i, port := range c.Ports {
			key := fmt.Sprintf("%s/%d/%s/%d", port.Protocol, port.ContainerPort, port.HostIP, port.HostPort)
			if first, ok := ports[key]; ok {
				out = append(out, fmt.Sprintf("%s: duplicate port definition with %s", at.Child("ports").Index(i), first))
			} else {
				ports[key] = at.Child("ports").Index(i)
			}
		}
	})
	return out
}
