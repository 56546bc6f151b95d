package resources

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/keelson/keelson/apiserver/resources/check"
)

type csr = certificatesv1.CertificateSigningRequest

// A CertificateSigningRequest says who asked, as the server knows it, and never
// changes. Approval writes the Approved and Denied conditions and nothing else;
// status writes the certificate and every other condition.
var certificateSigningRequests = Resource[csr]{
	Group: "certificates.k8s.io", Version: "v1", Kind: "CertificateSigningRequest", Plural: "certificatesigningrequests",
	Prefix: "certificatesigningrequests", Short: []string{"csr"}, Scope: Cluster, NoGeneration: true,
	List: listOf[certificatesv1.CertificateSigningRequestList],
	Name: PathSegment,
	Main: Part[csr]{
		Prepare: func(rq *Request, obj, old *csr) {
			if old != nil {
				obj.Spec, obj.Status = old.Spec, old.Status
				return
			}
			obj.Status = certificatesv1.CertificateSigningRequestStatus{}
			obj.Spec.Username, obj.Spec.UID, obj.Spec.Groups, obj.Spec.Extra = rq.User, rq.UID, slices.Clone(rq.Groups), nil
			for k, v := range rq.Extra {
				if obj.Spec.Extra == nil {
					obj.Spec.Extra = map[string]certificatesv1.ExtraValue{}
				}
				obj.Spec.Extra[k] = v
			}
		},
		Validate: func(_ *Request, obj, old *csr) field.ErrorList { return validateCSR(obj, old, false, false) },
		Reset:    []string{"spec", "status"}, // nobody owns what nobody can change
	},
	Status: &Part[csr]{
		Prepare: func(rq *Request, obj, old *csr) {
			obj.Spec = old.Spec
			keepConditions(obj, old, certificatesv1.CertificateApproved)
			keepConditions(obj, old, certificatesv1.CertificateDenied)
			stampConditions(rq, obj, old)
		},
		Validate: func(_ *Request, obj, old *csr) field.ErrorList { return validateCSR(obj, old, false, true) },
		Reset:    []string{"spec"},
	},
	Parts: map[string]Part[csr]{
		"approval": {
			Prepare: func(rq *Request, obj, old *csr) {
				stampConditions(rq, obj, old)
				conditions := obj.Status.Conditions
				obj.Spec, obj.Status = old.Spec, old.Status
				obj.Status.Conditions = conditions
			},
			Validate: func(_ *Request, obj, old *csr) field.ErrorList { return validateCSR(obj, old, true, false) },
			Reset:    []string{"spec", "status.certificate"},
		},
	},
	Fields:     func(r *csr) fields.Set { return fields.Set{"spec.signerName": r.Spec.SignerName} },
	FieldNames: []string{"spec.signerName"},
	Docs: map[string]string{
		"SignerName":        certificatesv1.CertificateSigningRequestSpec{}.SwaggerDoc()["signerName"],
		"Requestor":         certificatesv1.CertificateSigningRequestSpec{}.SwaggerDoc()["username"],
		"RequestedDuration": certificatesv1.CertificateSigningRequestSpec{}.SwaggerDoc()["expirationSeconds"],
		"Condition":         certificatesv1.CertificateSigningRequestStatus{}.SwaggerDoc()["conditions"],
	},
	Columns: []Column[csr]{
		ageColumn[csr](),
		text("SignerName", func(r *csr) string { return orNone(r.Spec.SignerName) }),
		text("Requestor", func(r *csr) string { return r.Spec.Username }),
		text("RequestedDuration", func(r *csr) string {
			if r.Spec.ExpirationSeconds == nil {
				return "<none>"
			}
			return duration.HumanDuration(time.Duration(*r.Spec.ExpirationSeconds) * time.Second)
		}),
		text("Condition", func(r *csr) string {
			has := func(t certificatesv1.RequestConditionType) bool { return len(conditionsOf(r, t)) > 0 }
			status := "Pending"
			if has(certificatesv1.CertificateDenied) {
				status = "Denied"
			} else if has(certificatesv1.CertificateApproved) {
				status = "Approved"
			}
			if has(certificatesv1.CertificateFailed) {
				status += ",Failed"
			}
			if len(r.Status.Certificate) > 0 {
				status += ",Issued"
			}
			return status
		}),
	},
}

func conditionsOf(r *csr, t certificatesv1.RequestConditionType) []certificatesv1.CertificateSigningRequestCondition {
	var out []certificatesv1.CertificateSigningRequestCondition
	for _, c := range r.Status.Conditions {
		if c.Type == t {
			out = append(out, c)
		}
	}
	return out
}

// keepConditions restores conditions of a type where their number did not change.
func keepConditions(r, old *csr, t certificatesv1.RequestConditionType) {
	was := conditionsOf(old, t)
	if len(was) != len(conditionsOf(r, t)) {
		return
	}
	for i := range r.Status.Conditions {
		if r.Status.Conditions[i].Type == t {
			r.Status.Conditions[i], was = was[0], was[1:]
		}
	}
}

func stampConditions(rq *Request, r, old *csr) {
	now := metav1.NewTime(rq.Now)
	for i := range r.Status.Conditions {
		c := &r.Status.Conditions[i]
		if c.LastUpdateTime.IsZero() {
			c.LastUpdateTime = now
		}
		if !c.LastTransitionTime.IsZero() {
			continue
		}
		c.LastTransitionTime = now
		for _, o := range old.Status.Conditions {
			if o.Type == c.Type && o.Status == c.Status && !o.LastTransitionTime.IsZero() {
				c.LastTransitionTime = o.LastTransitionTime
				break
			}
		}
	}
}

var keyUsages = []certificatesv1.KeyUsage{
	"signing", "digital signature", "content commitment", "key encipherment", "key agreement", "data encipherment", "cert sign", "crl sign",
	"encipher only", "decipher only", "any", "server auth", "client auth", "code signing", "email protection", "s/mime", "ipsec end system",
	"ipsec tunnel", "ipsec user", "timestamping", "ocsp signing", "microsoft sgc", "netscape sgc",
}

// parseRequest reads the one PEM block of a request and checks its signature.
func parseRequest(b []byte) error {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return err
	}
	return r.CheckSignature()
}

func parseCertificates(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	found := 0
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("only CERTIFICATE PEM blocks are allowed, found %q", block.Type)
		}
		if len(block.Headers) > 0 {
			return errors.New("no PEM block headers are permitted")
		}
		certs, err := x509.ParseCertificates(block.Bytes)
		if err != nil {
			return err
		}
		found += len(certs)
		b = rest
	}
	if found == 0 {
		return errors.New("must contain at least one CERTIFICATE PEM block")
	}
	return nil
}

func validateCSR(r, old *csr, approving, signing bool) field.ErrorList {
	var f check.Faults
	s, p := &r.Spec, field.NewPath("spec")
	if old == nil {
		if err := parseRequest(s.Request); err != nil {
			f.Invalid(p.Child("request"), s.Request, err.Error())
		}
		if len(s.Usages) == 0 {
			f.Required(p.Child("usages"), "")
		}
		seen := check.Seen[certificatesv1.KeyUsage]{}
		for i, u := range s.Usages {
			check.Among(&f, p.Child("usages").Index(i), u, keyUsages...)
			if seen.Again(u) {
				f.Duplicate(p.Child("usages").Index(i), u)
			}
		}
		if s.SignerName == "kubernetes.io/legacy-unknown" {
			f.Invalid(p.Child("signerName"), s.SignerName, "the legacy signerName is not allowed via this API version")
		} else {
			f.SignerName(p.Child("signerName"), s.SignerName)
		}
		if e := s.ExpirationSeconds; e != nil && *e < 600 {
			f.Invalid(p.Child("expirationSeconds"), *e, "may not specify a duration less than 600 seconds (10 minutes)")
		}
		return f.List()
	}
	at, types := field.NewPath("status", "conditions"), check.Seen[certificatesv1.RequestConditionType]{}
	for i, c := range r.Status.Conditions {
		if c.Type == "" {
			f.Required(at.Index(i).Child("type"), "")
		}
		switch c.Type {
		case certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed:
			check.OneOf(&f, at.Index(i).Child("status"), c.Status, corev1.ConditionTrue)
		default:
			check.OneOf(&f, at.Index(i).Child("status"), c.Status, corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown)
		}
		if types.Again(c.Type) {
			f.Duplicate(at.Index(i).Child("type"), c.Type)
		}
		if c.Type == certificatesv1.CertificateApproved && types[certificatesv1.CertificateDenied] ||
			c.Type == certificatesv1.CertificateDenied && types[certificatesv1.CertificateApproved] {
			f.Invalid(at, c.Type, "Approved and Denied conditions are mutually exclusive")
		}
	}
	for _, t := range []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied, certificatesv1.CertificateFailed} {
		now, was := conditionsOf(r, t), conditionsOf(old, t)
		switch {
		case len(now) < len(was):
			f.Forbidden(at, fmt.Sprintf("updates may not remove a condition of type %q", t))
		case approving || t == certificatesv1.CertificateFailed:
		case len(now) > len(was):
			f.Forbidden(at, fmt.Sprintf("updates may not add a condition of type %q", t))
		case !equality.Semantic.DeepEqual(now, was):
			f.Forbidden(at, fmt.Sprintf("updates may not modify a condition of type %q", t))
		}
	}
	if !bytes.Equal(r.Status.Certificate, old.Status.Certificate) {
		at := field.NewPath("status", "certificate")
		switch {
		case !signing:
			f.Forbidden(at, "updates may not set certificate content")
		case len(old.Status.Certificate) > 0:
			f.Forbidden(at, "updates may not modify existing certificate content")
		default:
			if err := parseCertificates(r.Status.Certificate); err != nil {
				f.Invalid(at, "<certificate data>", err.Error())
			}
		}
	}
	return f.List()
}
