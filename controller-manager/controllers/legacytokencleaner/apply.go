// Package legacytokencleaner takes tokens out of use that older clusters have made for every service account: Secrets
// of type kubernetes.io/service-account-token that their account names. One that nobody has used for the period
// (--legacy-service-account-token-clean-up-period) is marked, from when on the API server refuses its token; after
// the period again it is deleted. Until then taking the mark off brings the token back. Secrets that somebody has
// made by hand stay for ever, and so do those that a pod names.
//
// When tokens were used is noted by the API server: in a label of the Secret, and in the ConfigMap
// kube-system/kube-apiserver-legacy-service-account-token-tracking, which says since what day it does so.
//
// [Decide] is pure. What pods name is not in the caches (see package slim): it is read from the API, once for each
// namespace in which there is something to do.
//
// Source: KEP-2799 (reduction of secret-based service account tokens).
package legacytokencleaner

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "legacy-serviceaccount-token-cleaner-controller",
	Reads:  []string{"secrets", "serviceaccounts"},
	Writes: []string{"patch,delete secrets"},
	Extra: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{tracking}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}},
	},
	New: build,
}

const (
	every    = 24 * time.Hour // notes of uses are days
	tracking = "kube-apiserver-legacy-service-account-token-tracking"
	since    = "since" // its key
	page     = 500     // pods of one answer
)

type controller struct {
	secrets  *informer.Cache[*corev1.Secret]
	accounts *informer.Cache[*corev1.ServiceAccount]
	client   kubernetes.Interface
	period   time.Duration
}

func build(e *runtime.Env) error {
	c := &controller{
		secrets: runtime.Read[*corev1.Secret](e), accounts: runtime.Read[*corev1.ServiceAccount](e), client: e.Client(),
		period: e.Settings().LegacyTokenCleanUp.Duration,
	}
	q := e.Keyed("", 1, c.pass)
	e.Go("start", func(ctx context.Context) error { q.Add(types.NamespacedName{Name: "all"}); <-ctx.Done(); return nil })
	return nil
}

func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	again := runtime.Result{Again: p.Now.Add(every)}
	tracked, err := c.tracked(ctx)
	if err != nil {
		return again, err
	}
	pods := map[string]map[string]bool{}
	var errs []error
	for _, s := range Decide(c.secrets.List(), c.account, tracked, c.period, p.Now) {
		errs = append(errs, c.apply(ctx, p, s, pods))
	}
	return again, errors.Join(errs...)
}

func (c *controller) account(key types.NamespacedName) *corev1.ServiceAccount {
	a, _ := c.accounts.Get(key)
	return a
}

func (c *controller) tracked(ctx context.Context) (time.Time, error) {
	m, err := c.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, tracking, metav1.GetOptions{})
	if err != nil {
		return time.Time{}, fmt.Errorf("read since when uses of tokens are noted: %w", err)
	}
	day, err := time.Parse(time.DateOnly, m.Data[since])
	if err != nil {
		return time.Time{}, fmt.Errorf("config map %s/%s, key %s: %w", m.Namespace, m.Name, since, err)
	}
	return day, nil
}

// apply carries out a step. The secret's resourceVersion is its precondition: the token may have been used a moment ago.
func (c *controller) apply(ctx context.Context, p *runtime.Pass, s Step, pods map[string]map[string]bool) error {
	names, err := c.pods(ctx, s.Secret.Namespace, pods)
	if err != nil || names[s.Secret.Name] {
		return err
	}
	api := c.client.CoreV1().Secrets(s.Secret.Namespace)
	p.Note("%s", s)
	if s.Delete {
		return runtime.Delete(ctx, p, api, s.Secret, func(o *metav1.DeleteOptions) { o.Preconditions.ResourceVersion = &s.Secret.ResourceVersion })
	}
	_, err = runtime.Patch(ctx, p, api, s.Secret.Name, map[string]any{"metadata": map[string]any{
		"uid": s.Secret.UID, "resourceVersion": s.Secret.ResourceVersion, "labels": map[string]string{invalidSince: s.Since},
	}})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// pods are the secrets that pods of a namespace name; known remembers answers.
func (c *controller) pods(ctx context.Context, namespace string, known map[string]map[string]bool) (map[string]bool, error) {
	if names, ok := known[namespace]; ok {
		return names, nil
	}
	names := map[string]bool{}
	for o := (metav1.ListOptions{Limit: page}); ; {
		l, err := c.client.CoreV1().Pods(namespace).List(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("list pods of namespace %s: %w", namespace, err)
		}
		for i := range l.Items {
			named(&l.Items[i].Spec, func(name string) { names[name] = true })
		}
		if o.Continue = l.Continue; o.Continue == "" {
			known[namespace] = names
			return names, nil
		}
	}
}
