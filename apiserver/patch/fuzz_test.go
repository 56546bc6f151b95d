package patch

import (
	"encoding/json"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/keelson/keelson/apiserver/resources"
)

func fuzzPod(text []byte) *corev1.Pod {
	var pod corev1.Pod
	if json.Unmarshal(text, &pod) != nil {
		return nil
	}
	if _, err := json.Marshal(&pod); err != nil {
		return nil
	}
	return &pod
}

// A strategic merge patch gives a pod or an error, and leaves what it patches alone.
func FuzzStrategic(f *testing.F) {
	f.Add([]byte(`{"spec":{"containers":[{"name":"c","$patch":"delete"}]}}`), []byte(`{"spec":{"containers":[{"name":"c"}]}}`))
	f.Add([]byte(`{"spec":{"$setElementOrder/containers":[{"name":"b"},{"name":"a"}],"containers":[{"name":"a","image":"x"}]}}`), []byte(`{"spec":{"containers":[{"name":"a"},{"name":"b"}]}}`))
	f.Add([]byte(`{"metadata":{"$deleteFromPrimitiveList/finalizers":["a"],"labels":null}}`), []byte(`{"metadata":{"finalizers":["a","b"],"labels":{"x":"y"}}}`))
	f.Add([]byte(`{"spec":{"volumes":[{"$retainKeys":["name","emptyDir"],"name":"v","emptyDir":{}}]}}`), []byte(`{"spec":{"volumes":[{"name":"v","hostPath":{"path":"/x"}}]}}`))
	f.Fuzz(func(t *testing.T, p, doc []byte) {
		pod := fuzzPod(doc)
		if pod == nil {
			return
		}
		was, _ := json.Marshal(pod)
		into := &corev1.Pod{}
		_, _, err := Strategic(pod, into, p)
		if now, _ := json.Marshal(pod); string(was) != string(now) {
			t.Fatalf("the patch %s changed its input:\n%s\n%s", p, was, now)
		}
		if err != nil {
			return
		}
		if text, err := json.Marshal(into); err == nil && fuzzPod(text) == nil {
			t.Fatalf("the patch %s made what cannot be read: %s", p, text)
		}
		if string(p) == "{}" {
			if now, _ := json.Marshal(into); string(was) != string(now) {
				t.Fatalf("an empty patch changed\n%s to\n%s", was, now)
			}
		}
	})
}

// A merge patch makes JSON of JSON; applied again it changes nothing more (RFC 7386).
func FuzzMerge(f *testing.F) {
	f.Add([]byte(`{"a":null,"b":{"c":1}}`), []byte(`{"a":1,"b":{"d":2}}`))
	f.Add([]byte(`{"a":[1]}`), []byte(`{"a":{"b":1}}`))
	f.Fuzz(func(t *testing.T, p, doc []byte) {
		if !json.Valid(doc) {
			return
		}
		once, _, err := Merge(doc, p)
		if err != nil {
			return
		}
		if !json.Valid(once) {
			t.Fatalf("%s and %s made %q", doc, p, once)
		}
		twice, _, err := Merge(once, p)
		if err != nil {
			t.Fatalf("%s: %v", once, err)
		}
		var a, b any
		if json.Unmarshal(once, &a) != nil || json.Unmarshal(twice, &b) != nil {
			return
		}
		if x, _ := json.Marshal(a); true {
			if y, _ := json.Marshal(b); string(x) != string(y) {
				t.Fatalf("%s by %s is %s, and by the same again %s", doc, p, once, twice)
			}
		}
	})
}

// A JSON patch (RFC 6902) makes JSON of JSON, within bounds.
func FuzzJSONPatch(f *testing.F) {
	f.Add([]byte(`[{"op":"copy","from":"/a","path":"/b"},{"op":"move","from":"/b","path":"/c/-"}]`), []byte(`{"a":1,"c":[]}`))
	f.Add([]byte(`[{"op":"test","path":"/a~1b","value":null},{"op":"remove","path":"/a~1b"}]`), []byte(`{"a/b":null}`))
	f.Add([]byte(`[{"op":"add","path":"","value":{}}]`), []byte(`[]`))
	f.Add([]byte(`[{"op":"copy","from":"","path":"/a"},{"op":"copy","from":"","path":"/a"},{"op":"copy","from":"","path":"/a"}]`), []byte(`{"x":"y"}`))
	f.Fuzz(func(t *testing.T, p, doc []byte) {
		if !json.Valid(doc) {
			return
		}
		out, err := JSON(doc, p)
		if err == nil && !json.Valid(out) {
			t.Fatalf("%s and %s made %q", doc, p, out)
		}
		if len(out) > len(doc)+len(p)+(4<<20) {
			t.Fatalf("%d and %d bytes made %d", len(doc), len(p), len(out))
		}
	})
}

// managedFields that a client sends are refused or kept: what was kept can be read and
// written again, and neither an update nor an apply on top fails because of them.
func FuzzManagedFields(f *testing.F) {
	f.Add([]byte(`{"f:metadata":{"f:labels":{".":{},"f:a":{}}},"f:spec":{"f:replicas":{}}}`), "m", "Update", "apps/v1", "")
	f.Add([]byte(`{"f:spec":{"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{}}}}}}}`), "m", "Apply", "apps/v1", "status")
	f.Add([]byte(`{"v:1":{},"i:0":{},"k:{}":{}}`), "", "Update", "extensions/v1beta1", "scale")
	reg, err := resources.NewRegistry(resources.Table())
	if err != nil {
		f.Fatal(err)
	}
	ff, row := NewFields(reg.Kind), reg.Lookup("apps", "v1", "deployments")
	var d appsv1.Deployment
	if err := yaml.Unmarshal([]byte(base), &d); err != nil {
		f.Fatal(err)
	}
	d.UID = "u"
	f.Fuzz(func(t *testing.T, text []byte, manager, operation, version, sub string) {
		live := d.DeepCopy()
		live.ManagedFields = []metav1.ManagedFieldsEntry{{
			Manager: manager, Operation: metav1.ManagedFieldsOperationType(operation), APIVersion: version, FieldsType: "FieldsV1",
			Subresource: sub, FieldsV1: &metav1.FieldsV1{Raw: text},
		}}
		if Check(live.ManagedFields) != nil {
			return
		}
		next := live.DeepCopy()
		next.Labels["x"] = "y"
		if err := ff.Update(Write{Row: row, Manager: "f", Now: time.Unix(1, 0)}, live, next); err != nil {
			t.Fatalf("update over %s: %v", text, err)
		}
		if err := Check(next.ManagedFields); err != nil {
			t.Fatalf("%s became %v: %v", text, next.ManagedFields, err)
		}
		u := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "d", "labels": map[string]any{"z": "1"}},
		}}
		obj, _, err := ff.Apply(Write{Row: row, Manager: "g", Now: time.Unix(2, 0)}, next, u, true)
		if err != nil {
			t.Fatalf("apply over %s: %v", text, err)
		}
		if err := Check(obj.GetManagedFields()); err != nil {
			t.Fatalf("%s became %v: %v", text, obj.GetManagedFields(), err)
		}
	})
}
