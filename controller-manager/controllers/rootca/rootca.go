// Package rootca publishes the cluster's CA certificate to every namespace, as the
// config map kube-root-ca.crt that the token volumes of pods project.
package rootca

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/keelson/keelson/controller-manager/runtime"
	"github.com/keelson/keelson/libs/informer"
	"github.com/keelson/keelson/libs/slim"
)

// Row is this controller's line of the table.
var Row = runtime.Row{
	Name:   "root-ca-certificate-publisher-controller",
	Reads:  []string{"namespaces", "configmaps"},
	Writes: []string{"create,update configmaps"},
	New:    build,
}

const (
	name        = slim.RootCA
	key         = "ca.crt"
	description = "kubernetes.io/description"
	about       = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."
)

type controller struct {
	namespaces *informer.Cache[*corev1.Namespace]
	maps       *informer.Cache[*corev1.ConfigMap]
	client     kubernetes.Interface
	ca         string
}

func build(e *runtime.Env) error {
	c := &controller{namespaces: runtime.Read[*corev1.Namespace](e), maps: runtime.Read[*corev1.ConfigMap](e), client: e.Client()}
	ca, err := e.RootCA()
	if err != nil {
		return err
	}
	if c.ca = ca; ca == "" {
		// Published all the same: pods mount the config map, whatever is in it.
		e.Log().Warn("the published CA bundle is empty: neither --root-ca-file nor the kubeconfig names one")
	}
	q := e.Keyed("", 2, c.pass)
	runtime.On(q, c.namespaces, runtime.Self[*corev1.Namespace])
	runtime.On(q, c.maps, func(ev informer.Event[*corev1.ConfigMap]) []types.NamespacedName {
		if o := ev.Last(); o.Name == name {
			return []types.NamespacedName{{Name: o.Namespace}}
		}
		return nil
	})
	return nil
}

// pass looks after one namespace.
func (c *controller) pass(ctx context.Context, p *runtime.Pass) (runtime.Result, error) {
	ns, ok := c.namespaces.Get(p.Key)
	if !ok || ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
		return runtime.Result{}, nil
	}
	maps := c.client.CoreV1().ConfigMaps(ns.Name)
	have, ok := c.maps.Get(types.NamespacedName{Namespace: ns.Name, Name: name})
	if !ok {
		p.Note("create config map %s/%s", ns.Name, name)
		_, err := runtime.Create(ctx, p, maps, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: name, Annotations: map[string]string{description: about}},
			Data:       map[string]string{key: c.ca},
		})
		if runtime.NamespaceEnding(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) {
			err = nil
		}
		return runtime.Result{}, err
	}
	if len(have.Data) == 1 && have.Data[key] == c.ca && len(have.BinaryData) == 0 && have.Annotations[description] != "" {
		return runtime.Result{}, nil
	}
	p.Note("put config map %s/%s right", ns.Name, name)
	fixed := have.DeepCopy()
	fixed.Data, fixed.BinaryData = map[string]string{key: c.ca}, nil
	if fixed.Annotations == nil {
		fixed.Annotations = map[string]string{}
	}
	fixed.Annotations[description] = about
	_, err := runtime.Update(ctx, p, maps, fixed)
	return runtime.Result{}, err
}
