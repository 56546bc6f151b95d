// Package csrapproving approves the certificate requests of kubelets: client
// certificates for a node's own identity, asked for by a machine that joins or by
// the node itself.
//
// [Recognize] is pure. Source: Kubernetes documentation, "TLS bootstrapping".
package csrapproving

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "certificatesigningrequest-approving-controller",
	Reads:  []string{"certificatesigningrequests.certificates.k8s.io"},
	Writes: []string{"update certificatesigningrequests.certificates.k8s.io/approval"},
	Extra: []rbacv1.PolicyRule{
		{APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"subjectaccessreviews"}, Verbs: []string{"create"}},
		{APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"signers"}, ResourceNames: []string{certificatesv1.KubeAPIServerClientKubeletSignerName}, Verbs: []string{"approve"}},
	},
	New: build,
}

// Kind is what a request was recognized as.
type Kind struct {
	// Permission is the subresource of certificatesigningrequests that the requester must be allowed to create.
	Permission string
	Message    string
}

// Recognize returns the permissions of which one suffices, in the order in which they
// are asked about; nil when the request is not a kubelet's.
func Recognize(csr *certificatesv1.CertificateSigningRequest) []Kind {
	if csr.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return nil
	}
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil {
		return nil
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || !kubeletClient(req, csr.Spec.Usages) {
		return nil
	}
	kinds := []Kind{{"nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."}}
	if csr.Spec.Username == req.Subject.CommonName {
		kinds = slices.Insert(kinds, 0, Kind{"selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."})
	}
	return kinds
}

// kubeletClient: the identity of a node and nothing else, for client authentication only.
func kubeletClient(req *x509.CertificateRequest, usages []certificatesv1.KeyUsage) bool {
	if !slices.Equal(req.Subject.Organization, []string{"system:nodes"}) || !strings.HasPrefix(req.Subject.CommonName, "system:node:") ||
		len(req.DNSNames)+len(req.IPAddresses)+len(req.EmailAddresses)+len(req.URIs) > 0 {
		return false
	}
	for _, u := range usages {
		if u != certificatesv1.UsageClientAuth && u != certificatesv1.UsageDigitalSignature && u != certificatesv1.UsageKeyEncipherment {
			return false
		}
	}
	return slices.Contains(usages, certificatesv1.UsageClientAuth) && slices.Contains(usages, certificatesv1.UsageDigitalSignature)
}

// refusedAgain is when a request is looked at again whose requester had no permission.
const refusedAgain = 30 * time.Second

type controller struct {
	requests *informer.Cache[*certificatesv1.CertificateSigningRequest]
	client   kubernetes.Interface
}

func build(e *runtime.Env) error {
	c := &controller{requests: runtime.Read[*certificatesv1.CertificateSigningRequest](e), client: e.Client()}
	q := e.Keyed("", 2, c.pass)
	runtime.On(q, c.requests, runtime.Self[*certificatesv1.CertificateSigningRequest])
	return nil
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	csr, ok := c.requests.Get(p.Key)
	if !ok || len(csr.Status.Certificate) > 0 || len(csr.Status.Conditions) > 0 {
		return runtime.Result{}, nil
	}
	kinds := Recognize(csr)
	if kinds == nil {
		return runtime.Result{}, nil
	}
	var kind Kind
	for _, k := range kinds {
		allowed, err := c.allowed(ctx, csr, k.Permission)
		if err != nil {
			return runtime.Result{}, err
		}
		if allowed {
			kind = k
			break
		}
	}
	if kind.Permission == "" { // permission may come later, without an event here
		p.Note("%s is recognized, but its requester may not have it approved", csr.Name)
		return runtime.Result{Again: p.Now.Add(refusedAgain)}, nil
	}
	p.Note("approve as %s", kind.Permission)
	csr = csr.DeepCopy()
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "AutoApproved", Message: kind.Message,
		LastUpdateTime: metav1.NewTime(p.Now), LastTransitionTime: metav1.NewTime(p.Now),
	})
	_, err := runtime.UpdateSub[*certificatesv1.CertificateSigningRequest](ctx, p, "approval", approval{c.client, csr.Name}, csr)
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return runtime.Result{}, err
}

func (c *controller) allowed(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, sub string) (bool, error) {
	extra := map[string]authorizationv1.ExtraValue{}
	for k, v := range csr.Spec.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	r, err := c.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: csr.Spec.Username, UID: csr.Spec.UID, Groups: csr.Spec.Groups, Extra: extra,
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Group: "certificates.k8s.io", Resource: "certificatesigningrequests", Verb: "create", Subresource: sub,
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return r.Status.Allowed, nil
}

// approval writes through the approval subresource.
type approval struct {
	client kubernetes.Interface
	name   string
}

// Update puts the request's approval.
func (a approval) Update(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, opts metav1.UpdateOptions) (*certificatesv1.CertificateSigningRequest, error) {
	return a.client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, a.name, csr, opts)
}
