package check

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// SignerName demands "domain/path": a domain of two or more labels, and a path
// that has room for a namespace and a name.
func (f *Faults) SignerName(p *field.Path, name string) {
	if !f.Need(p, name) {
		return
	}
	domain, path, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(path, "/") {
		f.Invalid(p, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")
		return
	}
	if len(domain) > validation.DNS1123SubdomainMaxLength {
		f.TooLong(p, "", validation.DNS1123SubdomainMaxLength)
	}
	firstFault := func(whole string, labels []string, rule func(string) []string) {
		i := slices.IndexFunc(labels, func(l string) bool { return len(rule(l)) > 0 })
		if i < 0 {
			return
		}
		for _, msg := range rule(labels[i]) {
			f.Invalid(p, whole, fmt.Sprintf("validating label %q: %s", labels[i], msg))
		}
	}
	labels := strings.Split(domain, ".")
	firstFault(domain, labels, validation.IsDNS1123Label)
	if len(labels) < 2 {
		f.Invalid(p, domain, "should be a domain with at least two segments separated by dots")
	}
	firstFault(path, strings.Split(path, "."), validation.IsDNS1123Subdomain)
	if most := 2*validation.DNS1123SubdomainMaxLength + validation.DNS1123LabelMaxLength + 2; len(name) > most {
		f.TooLong(p, "", most)
	}
}
