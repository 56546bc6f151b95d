package apiserver

import (
	"context"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/keelson/keelson/apiserver/resources"
)

// flowObjects is fairness.Writer: what the server itself writes of priority and fairness.
type flowObjects struct{ *api }

func (a flowObjects) Create(ctx context.Context, gr schema.GroupResource, obj resources.Object) error {
	return a.api.Create(ctx, gr, obj.DeepCopyObject().(resources.Object))
}

func (a flowObjects) Update(ctx context.Context, gr schema.GroupResource, part, name string, change func(resources.Object) bool) error {
	return a.api.Update(ctx, gr, part, "", name, func(o resources.Object) (resources.Object, error) {
		next := o.DeepCopyObject().(resources.Object)
		if !change(next) {
			return o, nil
		}
		return next, nil
	})
}

func (a flowObjects) Delete(ctx context.Context, gr schema.GroupResource, name string, uid types.UID) error {
	return a.api.Delete(ctx, gr, name, &metav1.Preconditions{UID: &uid})
}

// dumpFairness serves the tables of levels, queues and waiting requests, as upstream does.
func (s *server) dumpFairness(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !s.fair.Dump(w, r.PathValue("table"), r.URL.Query().Get("includeRequestDetails") != "") {
		http.NotFound(w, r)
	}
}
