package resources

import (
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A question about access has no metadata: a client that sends some means another kind, or something that is not done.
func TestReviewsHaveNoMetadata(t *testing.T) {
	asked := &authorizationv1.ResourceAttributes{Namespace: "d", Verb: "get", Resource: "pods"}
	spec := authorizationv1.SubjectAccessReviewSpec{User: "eve", ResourceAttributes: asked}
	for _, c := range []struct {
		what        string
		meta        metav1.ObjectMeta
		free, local bool // refused for reviews of all namespaces, and of one
	}{
		{"nothing", metav1.ObjectMeta{Namespace: "d"}, false, false},
		{"managed fields", metav1.ObjectMeta{Namespace: "d", ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}}}, false, false},
		{"a name", metav1.ObjectMeta{Namespace: "d", Name: "x"}, true, true},
		{"labels", metav1.ObjectMeta{Namespace: "d", Labels: map[string]string{"a": "b"}}, true, true},
	} {
		for kind, try := range map[string]func() int{
			"SubjectAccessReview": func() int {
				r := &authorizationv1.SubjectAccessReview{ObjectMeta: c.meta, Spec: spec}
				subjectAccessReviews.Main.Prepare(request(), r, nil)
				return len(subjectAccessReviews.Main.Validate(request(), r, nil))
			},
			"SelfSubjectAccessReview": func() int {
				r := &authorizationv1.SelfSubjectAccessReview{ObjectMeta: c.meta, Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: asked}}
				selfSubjectAccessReviews.Main.Prepare(request(), r, nil)
				return len(selfSubjectAccessReviews.Main.Validate(request(), r, nil))
			},
			"LocalSubjectAccessReview": func() int {
				return len(localSubjectAccessReviews.Main.Validate(request(), &authorizationv1.LocalSubjectAccessReview{ObjectMeta: c.meta, Spec: spec}, nil))
			},
		} {
			refused := c.free
			if kind == "LocalSubjectAccessReview" {
				refused = c.local
			}
			if n := try(); (n > 0) != refused {
				t.Errorf("%s with %s: %d faults, refused should be %v", kind, c.what, n, refused)
			}
		}
	}
}
