package podrules

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

// projection checks the sources of one projected volume, whose files must not collide.
type projection struct {
	*specRules
	at    *field.Path
	paths check.Seen[string]
}

// unique reports a file that is there twice. value is what the message shows.
func (r *projection) unique(path string, value any) {
	if r.paths.Again(path) {
		r.Invalid(r.at, value, samePaths)
	}
}

func (r *projection) keys(name string, items []corev1.KeyToPath, p *field.Path) {
	r.Need(p.Child("name"), name)
	r.items(items, p.Child("items"))
	for _, item := range items {
		if item.Path != "" {
			r.unique(item.Path, name)
		}
	}
}

func (r *specRules) validateProjected(v *corev1.ProjectedVolumeSource, p *field.Path) {
	r.mode(v.DefaultMode, p.Child("defaultMode"))
	one := &projection{specRules: r, at: p, paths: check.Seen[string]{}}
	for i := range v.Sources {
		s, at, n := &v.Sources[i], p.Child("sources").Index(i), 0
		if s.Secret != nil {
			n++
			one.keys(s.Secret.Name, s.Secret.Items, at.Child("secret"))
		}
		if s.ConfigMap != nil {
			n++
			one.keys(s.ConfigMap.Name, s.ConfigMap.Items, at.Child("configMap"))
		}
		if s.DownwardAPI != nil {
			n++
			for j := range s.DownwardAPI.Items {
				item := &s.DownwardAPI.Items[j]
				r.downwardFile(item, at.Child("downwardAPI"))
				if item.Path != "" {
					one.unique(item.Path, item.Path)
				}
			}
		}
		if s.ServiceAccountToken != nil {
			n++
			one.token(s.ServiceAccountToken, at.Child("serviceAccountToken"))
		}
		if s.ClusterTrustBundle != nil {
			n++
			one.trustBundle(s.ClusterTrustBundle, at.Child("clusterTrustBundle"))
		}
		if s.PodCertificate != nil {
			n++
			one.certificate(s.PodCertificate, at.Child("podCertificate"))
		}
		if n > 1 {
			r.Forbidden(at, "may not specify more than 1 volume type per source")
		}
	}
}

func (r *projection) token(t *corev1.ServiceAccountTokenProjection, p *field.Path) {
	if s := t.ExpirationSeconds; s != nil {
		at := p.Child("expirationSeconds")
		if *s < 600 {
			r.Invalid(at, *s, "may not specify a duration less than 10 minutes")
		}
		if *s > 1<<32 {
			r.Invalid(at, *s, "may not specify a duration larger than 2^32 seconds")
		}
	}
	if r.Need(r.at.Child("path"), t.Path) {
		r.ownPath(t.Path, r.at.Child("path"))
	}
}

func (r *projection) trustBundle(b *corev1.ClusterTrustBundleProjection, p *field.Path) {
	switch {
	case b.Name != nil && b.SignerName != nil:
		r.Invalid(p, b, "only one of name and signerName may be used")
	case b.Name != nil:
		if *b.Name == "" {
			r.Required(p.Child("name"), "must be a valid object name")
		}
		for _, msg := range trustBundleName(*b.Name) {
			r.Invalid(p.Child("name"), *b.Name, "not a valid clustertrustbundlename: "+msg)
		}
		if b.LabelSelector != nil {
			r.Invalid(p.Child("labelSelector"), b.LabelSelector, "labelSelector must be unset if name is specified")
		}
	case b.SignerName != nil:
		if *b.SignerName == "" {
			r.Required(p.Child("signerName"), "must be a valid signer name")
		}
		r.SignerName(p.Child("signerName"), *b.SignerName)
		r.Add(selectorFaults(b.LabelSelector, p.Child("labelSelector")))
	default:
		r.Required(p, "either name or signerName must be specified")
	}
	r.Need(p.Child("path"), b.Path)
	r.ownPath(b.Path, p.Child("path"))
	r.unique(b.Path, b.Path)
}

// trustBundleName: the bundles of a signer begin with its name, colons in place of slashes.
func trustBundleName(name string) []string {
	i := strings.LastIndexByte(name, ':')
	if i < 0 {
		return validation.IsDNS1123Subdomain(name)
	}
	return validation.IsDNS1123Subdomain(name[i+1:])
}

// Longest lives of pod certificates: any, and those that a signer of Kubernetes' own makes.
const (
	maxCertificateSeconds    = 7862400 // 91 days
	maxOwnCertificateSeconds = 86400
)

func (r *projection) certificate(c *corev1.PodCertificateProjection, p *field.Path) {
	r.SignerName(p.Child("signerName"), c.SignerName)
	for k := range c.UserAnnotations {
		r.Add(validation.IsDomainPrefixedKey(p.Child("userAnnotations"), strings.ToLower(k)))
	}
	if apivalidation.ValidateAnnotationsSize(c.UserAnnotations) != nil {
		r.TooLong(p.Child("userAnnotations"), "", apivalidation.TotalAnnotationSizeLimitB)
	}
	check.Listed(&r.Faults, p.Child("keyType"), c.KeyType, "RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519")
	if s := c.MaxExpirationSeconds; s != nil {
		at, most := p.Child("maxExpirationSeconds"), int32(maxCertificateSeconds)
		if domain, _, _ := strings.Cut(c.SignerName, "/"); domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io") {
			most = maxOwnCertificateSeconds
		}
		if *s < 3600 {
			r.Invalid(at, *s, "if provided, maxExpirationSeconds must be >= 3600")
		}
		if *s > most {
			r.Invalid(at, *s, fmt.Sprintf("if provided, maxExpirationSeconds must be <= %d", most))
		}
	}
	set := false
	for _, f := range []struct{ name, path string }{
		{"credentialBundlePath", c.CredentialBundlePath}, {"keyPath", c.KeyPath}, {"certificateChainPath", c.CertificateChainPath},
	} {
		if f.path != "" {
			set = true
			r.ownPath(f.path, p.Child(f.name))
			r.unique(f.path, f.path)
		}
	}
	if !set {
		r.Required(p, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath")
	}
}
