package admission

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"github.com/keelson/keelson/apiserver/authz"
)

// forSigner asks whether the caller may act for a signer: by its name, or for
// every signer of its domain.
//
// Source: Kubernetes documentation, "Certificate Signing Requests", authorization.
func forSigner(ctx context.Context, cfg Config, a *Attributes, verb, signer string) bool {
	names := []string{signer}
	for i := range signer {
		if signer[i] == '/' {
			names = append(names, signer[:i]+"/*")
			break
		}
	}
	for _, name := range names {
		d, _, _ := cfg.Authorizer.Authorize(ctx, authz.Attributes{
			User: a.User, Verb: verb, Resource: true, Group: "certificates.k8s.io", Version: "*", Plural: "signers", Name: name,
		})
		if d == authz.Allow {
			return true
		}
	}
	return false
}

// certificateApproval lets only those approve who may approve for the signer.
func certificateApproval(cfg Config) Plugin {
	return Plugin{Name: "CertificateApproval", Validate: func(ctx context.Context, a *Attributes) (func(), error) {
		csr, ok := a.Old.(*certificatesv1.CertificateSigningRequest)
		if !ok || a.Row.GR() != grCSRs || a.Subresource != "approval" {
			return nil, nil
		}
		if !forSigner(ctx, cfg, a, "approve", csr.Spec.SignerName) {
			return nil, forbid(a, fmt.Errorf("user not permitted to approve requests with signerName %q", csr.Spec.SignerName))
		}
		return nil, nil
	}}
}

// certificateSigning lets only those write certificates who may sign for the signer.
func certificateSigning(cfg Config) Plugin {
	return Plugin{Name: "CertificateSigning", Validate: func(ctx context.Context, a *Attributes) (func(), error) {
		old, okOld := a.Old.(*certificatesv1.CertificateSigningRequest)
		csr, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
		if !ok || !okOld || a.Row.GR() != grCSRs || a.Subresource != "status" {
			return nil, nil
		}
		if apiequality.Semantic.DeepEqual(old.Status, csr.Status) {
			return nil, nil
		}
		if !forSigner(ctx, cfg, a, "sign", old.Spec.SignerName) {
			return nil, forbid(a, fmt.Errorf("user not permitted to sign requests with signerName %q", old.Spec.SignerName))
		}
		return nil, nil
	}}
}

// certificateSubjectRestriction keeps clients from asking for system:masters.
func certificateSubjectRestriction() Plugin {
	return Plugin{Name: "CertificateSubjectRestriction", Validate: func(_ context.Context, a *Attributes) (func(), error) {
		csr, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
		if !ok || !a.is(grCSRs) || a.Operation != Create || csr.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
			return nil, nil
		}
		block, _ := pem.Decode(csr.Spec.Request)
		if block == nil {
			return nil, forbid(a, fmt.Errorf("failed to parse CSR: spec.request holds no PEM block"))
		}
		req, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			return nil, forbid(a, fmt.Errorf("failed to parse CSR: %v", err))
		}
		if slices.Contains(req.Subject.Organization, "system:masters") {
			return nil, forbid(a, fmt.Errorf("use of %s signer with system:masters group is not allowed", csr.Spec.SignerName))
		}
		return nil, nil
	}}
}
