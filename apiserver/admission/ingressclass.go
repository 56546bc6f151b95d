package admission

import (
	"context"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/keelson/keelson/apiserver/resources"
)

// defaultIngressClass names the default class in ingresses that name none: of several, the newest.
func defaultIngressClass(cfg Config) Plugin {
	return Plugin{Name: "DefaultIngressClass", Mutate: func(_ context.Context, a *Attributes) error {
		ing, ok := a.Object.(*networkingv1.Ingress)
		if !ok || !a.is(grIngresses) || a.Operation != Create || ing.Spec.IngressClassName != nil {
			return nil
		}
		if _, old := ing.Annotations["kubernetes.io/ingress.class"]; old {
			return nil
		}
		var best *networkingv1.IngressClass
		err := cfg.Read.Each(grIngressClasses, "", func(o resources.Object) bool {
			ic, ok := o.(*networkingv1.IngressClass)
			if ok && ic.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" {
				if best == nil || ic.CreationTimestamp.After(best.CreationTimestamp.Time) ||
					ic.CreationTimestamp.Equal(&best.CreationTimestamp) && ic.Name < best.Name {
					best = ic
				}
			}
			return true
		})
		if err == nil && best != nil {
			name := best.Name
			ing.Spec.IngressClassName = &name
		}
		return err
	}}
}
