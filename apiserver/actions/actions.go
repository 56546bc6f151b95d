// Package actions answers the requests that are verbs rather than objects:
// binding a pod to a node, evicting it, issuing a service account's token, and
// the reviews, which answer a question and store nothing.
//
// Each action is a function of the decoded body; decoding, admission and the
// answer are the business of the verbs in rest.
package actions

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/apiserver/authn"
	"github.com/keelson/keelson/apiserver/authz"
	"github.com/keelson/keelson/apiserver/resources"
)

// Writer changes stored objects with the same rules as a request does.
type Writer interface {
	// Update runs change on the newest object until it is written without
	// conflict. The part "binding" writes whatever change returns, without the
	// rules for what a client may change.
	Update(ctx context.Context, rq *resources.Request, gr schema.GroupResource, part, namespace, name string,
		change func(resources.Object) (resources.Object, error)) error
	Delete(ctx context.Context, rq *resources.Request, gr schema.GroupResource, namespace, name string, opts *metav1.DeleteOptions) error
}

// Config is what the actions need.
type Config struct {
	// Read is sure of what does not exist: an action often follows the creation of its object at once.
	Read       resources.Reader
	Write      Writer
	Accounts   *authn.ServiceAccounts
	Authorizer authz.Authorizer
	RBAC       *authz.RBAC
	Node       bool // kubelets are authorized by what their pods need, which nobody can list
	// Authenticate checks a bearer token for a TokenReview.
	Authenticate func(ctx context.Context, token string, audiences []string) (*authn.User, []string, error)
	Audiences    []string      // of this server
	MaxTokenLife time.Duration // 0: no bound but one year
	ExtendTokens bool          // hour-long tokens of pods live for a year, as upstream's --service-account-extend-token-expiration
	Now          func() time.Time
}

// Actions are the handlers, wired by the root.
type Actions struct{ Config }

var (
	grPods            = schema.GroupResource{Resource: "pods"}
	grNodes           = schema.GroupResource{Resource: "nodes"}
	grSecrets         = schema.GroupResource{Resource: "secrets"}
	grServiceAccounts = schema.GroupResource{Resource: "serviceaccounts"}
	grBudgets         = schema.GroupResource{Group: "policy", Resource: "poddisruptionbudgets"}
)
