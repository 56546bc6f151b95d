// Command manager is an operator as users write them, on sigs.k8s.io/controller-runtime:
// for the end-to-end story of other people's programs. Nothing in it knows of Keelson.
//
// It leads by election, keeps a Deployment for every Shop, watches the Deployments that it
// owns, writes the Shop's status through its subresource, and takes a finalizer off when a
// Shop is deleted. It prints one line whenever it starts to lead.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

var groupVersion = schema.GroupVersion{Group: "operator.example.com", Version: "v1"}

const finalizer = "operator.example.com/farewell"

// Shop is the kind that the manager looks after.
type Shop struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec struct {
		Replicas int32  `json:"replicas"`
		Image    string `json:"image"`
	} `json:"spec"`
	Status struct {
		Ready      int32              `json:"ready"`
		Observed   int64              `json:"observed,omitempty"`
		Conditions []metav1.Condition `json:"conditions,omitempty"`
	} `json:"status,omitempty"`
}

// DeepCopyObject makes Shop a runtime.Object.
func (s *Shop) DeepCopyObject() runtime.Object {
	out := *s
	out.ObjectMeta = *s.ObjectMeta.DeepCopy()
	out.Status.Conditions = append([]metav1.Condition(nil), s.Status.Conditions...)
	return &out
}

// ShopList is a list of them.
type ShopList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Shop `json:"items"`
}

// DeepCopyObject makes ShopList a runtime.Object.
func (l *ShopList) DeepCopyObject() runtime.Object {
	out := &ShopList{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy()}
	for i := range l.Items {
		out.Items = append(out.Items, *l.Items[i].DeepCopyObject().(*Shop))
	}
	return out
}

type shops struct{ client.Client }

func (r *shops) Reconcile(ctx context.Context, rq ctrl.Request) (ctrl.Result, error) {
	shop := &Shop{}
	if err := r.Get(ctx, rq.NamespacedName, shop); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !shop.DeletionTimestamp.IsZero() {
		if controllerutil.RemoveFinalizer(shop, finalizer) {
			return ctrl.Result{}, r.Update(ctx, shop)
		}
		return ctrl.Result{}, nil
	}
	if controllerutil.AddFinalizer(shop, finalizer) {
		return ctrl.Result{}, r.Update(ctx, shop)
	}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: shop.Namespace, Name: shop.Name}}
	if _, err := controllerutil.CreateOrUpdate(ctx, r.Client, d, func() error {
		labels := map[string]string{"shop": shop.Name}
		grace := int64(1)
		d.Spec.Replicas = &shop.Spec.Replicas
		d.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
		d.Spec.Template.Labels = labels
		d.Spec.Template.Spec.TerminationGracePeriodSeconds = &grace
		if len(d.Spec.Template.Spec.Containers) != 1 {
			d.Spec.Template.Spec.Containers = make([]corev1.Container, 1)
		}
		d.Spec.Template.Spec.Containers[0].Name, d.Spec.Template.Spec.Containers[0].Image = "web", shop.Spec.Image
		return controllerutil.SetControllerReference(shop, d, r.Scheme())
	}); err != nil {
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
			return ctrl.Result{RequeueAfter: 10 * time.Millisecond}, nil // the cache is behind
		}
		return ctrl.Result{}, err
	}
	before := shop.DeepCopyObject().(*Shop)
	shop.Status.Ready, shop.Status.Observed = d.Status.ReadyReplicas, shop.Generation
	return ctrl.Result{}, r.Status().Patch(ctx, shop, client.MergeFrom(before))
}

func main() {
	kubeconfig := flag.String("config", "", "kubeconfig")
	namespace := flag.String("in", "default", "namespace to work in")
	id := flag.String("id", "one", "name of this copy, for what it prints")
	flag.Parse()
	ctrl.SetLogger(zap.New(zap.WriteTo(os.Stderr)))
	if err := run(*kubeconfig, *namespace, *id); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(kubeconfig, namespace, id string) error {
	conf, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return err
	}
	scheme.AddKnownTypes(groupVersion, &Shop{}, &ShopList{})
	metav1.AddToGroupVersion(scheme, groupVersion)
	lease, renew, retry := 5*time.Second, 4*time.Second, time.Second
	m, err := ctrl.NewManager(conf, ctrl.Options{
		Scheme: scheme, Metrics: server.Options{BindAddress: "0"},
		LeaderElection: true, LeaderElectionID: "shops.operator.example.com", LeaderElectionNamespace: namespace,
		LeaseDuration: &lease, RenewDeadline: &renew, RetryPeriod: &retry,
		Cache: cache.Options{DefaultNamespaces: map[string]cache.Config{namespace: {}}},
	})
	if err != nil {
		return err
	}
	r := &shops{m.GetClient()}
	if err := ctrl.NewControllerManagedBy(m).For(&Shop{}).Owns(&appsv1.Deployment{}).Complete(r); err != nil {
		return err
	}
	go func() { // ends with the process
		<-m.Elected()
		fmt.Println(id, "leads")
	}()
	return m.Start(ctrl.SetupSignalHandler())
}
