// Package serviceaccounttoken fills Secrets of type kubernetes.io/service-account-token
// with a token of their service account, the cluster's CA and their namespace, and
// deletes them with the account.
//
// Nobody makes such Secrets by itself any more: pods get tokens of limited life from
// the API server. These are for users who ask for a token without an end.
//
// It runs only where --service-account-private-key-file is set; the API server has to
// know the public half.
//
// [Decide] is pure. Source: Kubernetes documentation, "Managing Service Accounts",
// section on long-lived API tokens.
package serviceaccounttoken

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "serviceaccount-token-controller",
	Reads:  []string{"serviceaccounts", "secrets"},
	Writes: []string{"update,delete secrets", "update serviceaccounts"},
	New:    build,
}

// Decide returns the secret as it has to be; nil when it is so already. token makes a
// token and is called only when one is needed.
func Decide(s *corev1.Secret, account *corev1.ServiceAccount, ca []byte, token func() (string, error)) (*corev1.Secret, error) {
	needsCA := len(ca) > 0 && !bytes.Equal(s.Data[corev1.ServiceAccountRootCAKey], ca)
	needsNamespace := len(s.Data[corev1.ServiceAccountNamespaceKey]) == 0
	needsToken := len(s.Data[corev1.ServiceAccountTokenKey]) == 0
	if s.DeletionTimestamp != nil || !needsCA && !needsNamespace && !needsToken {
		return nil, nil
	}
	s = s.DeepCopy()
	if s.Data == nil {
		s.Data = map[string][]byte{}
	}
	if needsCA {
		s.Data[corev1.ServiceAccountRootCAKey] = ca
	}
	if needsNamespace {
		s.Data[corev1.ServiceAccountNamespaceKey] = []byte(s.Namespace)
	}
	if needsToken {
		t, err := token()
		if err != nil {
			return nil, err
		}
		s.Data[corev1.ServiceAccountTokenKey] = []byte(t)
	}
	metav1.SetMetaDataAnnotation(&s.ObjectMeta, corev1.ServiceAccountNameKey, account.Name)
	metav1.SetMetaDataAnnotation(&s.ObjectMeta, corev1.ServiceAccountUIDKey, string(account.UID))
	return s, nil
}

type controller struct {
	accounts *informer.Cache[*corev1.ServiceAccount]
	secrets  *informer.Cache[*corev1.Secret]
	client   kubernetes.Interface
	signer   *signer
	ca       []byte
}

func build(e *runtime.Env) error {
	c := &controller{accounts: runtime.Read[*corev1.ServiceAccount](e), secrets: runtime.Read[*corev1.Secret](e), client: e.Client()}
	file := e.Settings().ServiceAccountKeyFile
	if file == "" {
		e.Log().Info("service account tokens are not written into Secrets: --service-account-private-key-file is not set")
		return nil
	}
	var err error
	if c.signer, err = readSigner(file); err != nil {
		return err
	}
	ca, err := e.RootCA()
	if err != nil {
		return err
	}
	c.ca = []byte(ca)

	tokens := e.Keyed("", 4, c.pass)
	runtime.On(tokens, c.secrets, func(ev informer.Event[*corev1.Secret]) []types.NamespacedName {
		if ev.Kind == informer.Deleted || ev.New.Type != corev1.SecretTypeServiceAccountToken {
			return nil
		}
		return runtime.Self(ev)
	})
	runtime.On(tokens, c.accounts, func(ev informer.Event[*corev1.ServiceAccount]) []types.NamespacedName {
		if ev.Kind == informer.Added {
			return nil
		}
		var keys []types.NamespacedName
		for _, s := range c.secrets.By(runtime.ByNamespace, ev.Last().Namespace) {
			if s.Type == corev1.SecretTypeServiceAccountToken && s.Annotations[corev1.ServiceAccountNameKey] == ev.Last().Name {
				keys = append(keys, runtime.KeyOf(s))
			}
		}
		return keys
	})

	// Keys here are "account/secret": the secret is gone, its name is all that is left of it.
	mentions := e.Keyed("references", 2, c.forget)
	runtime.On(mentions, c.secrets, func(ev informer.Event[*corev1.Secret]) []types.NamespacedName {
		if ev.Kind != informer.Deleted || ev.Old.Type != corev1.SecretTypeServiceAccountToken {
			return nil
		}
		return []types.NamespacedName{{Namespace: ev.Old.Namespace, Name: ev.Old.Annotations[corev1.ServiceAccountNameKey] + "/" + ev.Old.Name}}
	})
	return nil
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	s, ok := c.secrets.Get(p.Key)
	if !ok || s.Type != corev1.SecretTypeServiceAccountToken || s.Annotations[corev1.ServiceAccountNameKey] == "" || s.DeletionTimestamp != nil {
		return runtime.Result{}, nil
	}
	account, err := c.account(ctx, s)
	if err != nil {
		return runtime.Result{}, err
	}
	secrets := c.client.CoreV1().Secrets(s.Namespace)
	if account == nil {
		p.Note("delete: its service account is gone")
		return runtime.Result{}, runtime.Delete(ctx, p, secrets, s)
	}
	want, err := Decide(s, account, c.ca, func() (string, error) { return c.signer.token(account, s.Name) })
	if err != nil || want == nil {
		return runtime.Result{}, err
	}
	p.Note("fill")
	if _, err = runtime.Update(ctx, p, secrets, want); apierrors.IsNotFound(err) {
		err = nil
	}
	return runtime.Result{}, err
}

// account is the one that a secret was made for; nil when it is gone. The cache may
// not show a young account yet, so a deletion is decided on what the server says.
func (c *controller) account(ctx context.Context, s *corev1.Secret) (*corev1.ServiceAccount, error) {
	name, uid := s.Annotations[corev1.ServiceAccountNameKey], types.UID(s.Annotations[corev1.ServiceAccountUIDKey])
	fits := func(a *corev1.ServiceAccount) bool { return uid == "" || a.UID == uid }
	if a, ok := c.accounts.Get(types.NamespacedName{Namespace: s.Namespace, Name: name}); ok && fits(a) {
		return a, nil
	}
	a, err := c.client.CoreV1().ServiceAccounts(s.Namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	case !fits(a):
		return nil, nil
	}
	return a, nil
}

// forget takes a deleted secret off its account's list of secrets.
func (c *controller) forget(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	name, secret, _ := strings.Cut(p.Key.Name, "/")
	if _, again := c.secrets.Get(types.NamespacedName{Namespace: p.Key.Namespace, Name: secret}); again {
		return runtime.Result{}, nil
	}
	a, ok := c.accounts.Get(types.NamespacedName{Namespace: p.Key.Namespace, Name: name})
	named := func(r corev1.ObjectReference) bool { return r.Name == secret }
	if !ok || a.DeletionTimestamp != nil || !slices.ContainsFunc(a.Secrets, named) {
		return runtime.Result{}, nil
	}
	a = a.DeepCopy()
	a.Secrets = slices.DeleteFunc(a.Secrets, named)
	p.Note("take %s off the list of %s", secret, name)
	_, err := runtime.Update(ctx, p, c.client.CoreV1().ServiceAccounts(a.Namespace), a)
	if apierrors.IsNotFound(err) {
		return runtime.Result{}, nil
	}
	if err != nil {
		return runtime.Result{}, fmt.Errorf("update service account %s: %w", name, err)
	}
	return runtime.Result{}, nil
}
