package resources

import (
	"reflect"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What of metadata goes through the status subresource differs from kind to kind.
// Source: what a Kubernetes 1.36 API server was seen to do.
func TestMetadataThroughStatus(t *testing.T) {
	all := []string{"labels", "annotations", "finalizers", "owners"}
	kept := map[string][]string{ // those that it does not write, others write all
		"Deployment": {"labels"}, "Pod": {"owners"},
		"APIService": all, "FlowSchema": all, "PriorityLevelConfiguration": all, "ResourceClaim": all, "ServiceCIDR": all,
		"ValidatingAdmissionPolicy": all, "VolumeAttachment": all,
	}
	seen := 0
	for _, row := range Table() {
		part, ok := row.Parts["status"]
		if !ok {
			continue
		}
		old, obj := row.New(), row.New()
		obj.SetLabels(map[string]string{"a": "b"})
		obj.SetAnnotations(map[string]string{"a": "b"})
		obj.SetFinalizers([]string{"a/b"})
		obj.SetOwnerReferences([]metav1.OwnerReference{{Name: "a"}})
		part.Prepare(request(), obj, old)
		var got []string
		for i, set := range []bool{obj.GetLabels() != nil, obj.GetAnnotations() != nil, obj.GetFinalizers() != nil, obj.GetOwnerReferences() != nil} {
			if !set {
				got = append(got, all[i])
			}
		}
		if want := kept[row.Kind]; !slices.Equal(got, want) {
			t.Errorf("%s: status does not write %v, want %v", row.Kind, got, want)
		}
		if resets := slices.Contains(part.Reset, "metadata"); resets != reflect.DeepEqual(kept[row.Kind], all) {
			t.Errorf("%s: resets %v", row.Kind, part.Reset)
		}
		if kept[row.Kind] != nil {
			seen++
		}
	}
	if seen != len(kept) {
		t.Errorf("%d of %d kinds seen", seen, len(kept))
	}
}
