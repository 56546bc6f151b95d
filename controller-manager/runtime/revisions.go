package runtime

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/keelson/keelson/controller-manager/podset"
	"github.com/keelson/keelson/controller-manager/revisions"
	"github.com/keelson/keelson/libs/informer"
)

// History brings an owner's ControllerRevisions up to date: it adopts and
// releases, and finds, renumbers or creates the revision of template. label, if
// not empty, is a label that gets the hash too. It returns all revisions, oldest
// first, the template's among them and separately, and the collision count.
func (e *Env) History(ctx context.Context, p *Pass, cache *informer.Cache[*appsv1.ControllerRevision], owner metav1.Object, gvk schema.GroupVersionKind,
	selector labels.Selector, template *corev1.PodTemplateSpec, collisions *int32, label string,
	fresh func(context.Context) (metav1.Object, error)) (all []*appsv1.ControllerRevision, present *appsv1.ControllerRevision, count *int32, err error) {
	api := e.Client().AppsV1().ControllerRevisions(owner.GetNamespace())
	candidates := append(cache.By(ByController, string(owner.GetUID())), cache.By(Orphans, owner.GetNamespace())...)
	claims := podset.Claim(owner, selector, candidates)
	adopted, err := Own(ctx, p, api, owner, gvk, claims.Adopt, claims.Release, fresh)
	if err != nil {
		return nil, nil, collisions, err
	}
	all = append(claims.Mine, adopted...)
	revisions.Sort(all)
	for {
		plan := revisions.Plan(owner, gvk, template, all, collisions)
		switch {
		case plan.Have != nil:
			return all, plan.Have, collisions, nil
		case plan.Raise != nil:
			p.Note("revision %s becomes %d", plan.Raise.Name, plan.Raise.Revision)
			got, err := Update(ctx, p, api, plan.Raise)
			if err != nil {
				return nil, nil, collisions, fmt.Errorf("update revision %s: %w", plan.Raise.Name, err)
			}
			for i := range all {
				if all[i].UID == got.UID {
					all[i] = got
				}
			}
			revisions.Sort(all)
			return all, got, collisions, nil
		}
		if label != "" {
			plan.Create.Labels[label] = plan.Create.Labels[revisions.HashLabel]
		}
		p.Note("create revision %s", plan.Create.Name)
		got, err := Create(ctx, p, api, plan.Create)
		if err == nil {
			return append(all, got), got, collisions, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, nil, collisions, fmt.Errorf("create revision %s: %w", plan.Create.Name, err)
		}
		there, err := api.Get(ctx, plan.Create.Name, metav1.GetOptions{})
		if err != nil {
			return nil, nil, collisions, err
		}
		if metav1.IsControlledBy(there, owner) && revisions.Is(there, template, plan.Create.Data.Raw) {
			return nil, nil, collisions, fmt.Errorf("revision %s is there already; the cache will show it", there.Name)
		}
		n := int32(1)
		if collisions != nil {
			n += *collisions
		}
		collisions = &n
	}
}
