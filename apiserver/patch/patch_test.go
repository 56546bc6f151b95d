package patch

import (
	"errors"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/keelson/keelson/apiserver/resources"
)

func fields(t *testing.T) (*Fields, *resources.Row) {
	t.Helper()
	reg, err := resources.NewRegistry(resources.Table())
	if err != nil {
		t.Fatal(err)
	}
	return NewFields(reg.Kind), reg.Lookup("apps", "v1", "deployments")
}

func config(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err == nil {
		err = u.UnmarshalJSON(raw)
	}
	if err != nil {
		t.Fatal(err)
	}
	return u
}

const base = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: d, namespace: ns, labels: {a: "1"}}
spec:
  replicas: 2
  template:
    spec:
      containers:
      - {name: c, image: i, ports: [{containerPort: 80}], env: [{name: E, value: "1"}]}
`

// owned shows who owns what, one manager a line.
func owned(d *appsv1.Deployment) string {
	var b strings.Builder
	for _, e := range d.ManagedFields {
		b.WriteString(e.Manager + " " + string(e.Operation) + " " + e.Subresource + " " + e.FieldsV1.GetRawString() + "\n")
	}
	return b.String()
}

func TestApply(t *testing.T) {
	f, row := fields(t)
	at := time.Unix(1700000000, 0)
	apply := func(live resources.Object, who, text string, force bool) (*appsv1.Deployment, error) {
		obj, _, err := f.Apply(Write{Row: row, Reset: []string{"status"}, Manager: who, Now: at}, live, config(t, text), force)
		if err != nil {
			return nil, err
		}
		return obj.(*appsv1.Deployment), nil
	}
	d, err := apply(nil, "one", base, false)
	if err != nil {
		t.Fatal(err)
	}
	want := `one Apply  {"f:metadata":{"f:labels":{"f:a":{}}},"f:spec":{"f:replicas":{},"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:env":{"k:{\"name\":\"E\"}":{".":{},"f:name":{},"f:value":{}}},"f:image":{},"f:name":{},"f:ports":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{}}}}}}}}}` + "\n"
	if got := owned(d); got != want {
		t.Errorf("after the first apply:\n got %swant %s", got, want)
	}

	_, err = apply(d, "two", strings.ReplaceAll(base, "replicas: 2", "replicas: 5"), false)
	var held *ConflictError
	if !errors.As(err, &held) || held.Message != `Apply failed with 1 conflict: conflict with "one": .spec.replicas` {
		t.Errorf("conflict: %v", err)
	}
	forced, err := apply(d, "two", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {replicas: 5}\n", true)
	if err != nil || *forced.Spec.Replicas != 5 || *d.Spec.Replicas != 2 {
		t.Fatalf("forced: %v, %v (was %d)", forced, err, *d.Spec.Replicas)
	}
	if got := owned(forced); strings.Contains(strings.SplitN(got, "\n", 2)[0], "replicas") || !strings.Contains(got, `two Apply  {"f:spec":{"f:replicas":{}}}`) {
		t.Errorf("after force:\n%s", got)
	}

	// What one applied and applies no more goes, unless somebody else wants it.
	less, err := apply(forced, "one", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {template: {spec: {containers: [{name: c, image: i}]}}}\n", false)
	if err != nil {
		t.Fatal(err)
	}
	c := less.Spec.Template.Spec.Containers[0]
	if len(less.Labels) != 0 || len(c.Env) != 0 || len(c.Ports) != 0 || c.Image != "i" || *less.Spec.Replicas != 5 {
		t.Errorf("after applying less: labels %v, container %v, replicas %d", less.Labels, c, *less.Spec.Replicas)
	}

	if _, err := apply(d, "one", base+"  nope: 1\n", false); err == nil || !strings.Contains(err.Error(), "failed to create typed patch object (ns/d; apps/v1, Kind=Deployment): .spec.nope: field not declared in schema") {
		t.Errorf("unknown field: %v", err)
	}
}

func TestUpdateBooksWhatChanged(t *testing.T) {
	f, row := fields(t)
	at := time.Unix(1700000000, 0)
	replicas := int32(1)
	d := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: &replicas, Paused: true}}
	d.Name, d.Labels = "d", map[string]string{"a": "1"}
	d.Status.Replicas = 7
	w := Write{Row: row, Reset: []string{"status"}, Manager: "maker", Now: at}
	if err := f.Update(w, nil, d); err != nil {
		t.Fatal(err)
	}
	d.UID = "u"
	if got := owned(d); !strings.HasPrefix(got, `maker Update  {"f:metadata":{"f:labels":{".":{},"f:a":{}}},"f:spec":{"f:paused":{},"f:replicas":{}`) || strings.Contains(got, "status") {
		t.Errorf("created: %s", got)
	}
	next := d.DeepCopy()
	*next.Spec.Replicas = 3
	next.Spec.Paused = false
	w.Manager = "scaler"
	if err := f.Update(w, d, next); err != nil {
		t.Fatal(err)
	}
	got := owned(next)
	if strings.Contains(strings.SplitN(got, "\n", 2)[0], "replicas") || strings.Contains(got, "paused") || !strings.Contains(got, `scaler Update  {"f:spec":{"f:replicas":{}}}`) {
		t.Errorf("updated:\n%s", got)
	}
	same := next.DeepCopy()
	w.Manager = "idler"
	if err := f.Update(w, next, same); err != nil || owned(same) != got {
		t.Errorf("an update that changes nothing is booked: %v\n%s", err, owned(same))
	}
	reset := next.DeepCopy()
	reset.ManagedFields = reset.ManagedFields[:0]
	if err := f.Update(w, next, reset); err != nil || len(reset.ManagedFields) != 0 {
		t.Errorf("reset: %v %s", err, owned(reset))
	}
	for i := range 20 {
		was := next.DeepCopy()
		n := int32(10 + i)
		next = next.DeepCopy()
		next.Spec.Replicas = &n
		next.Labels = map[string]string{"a": "1", string(rune('b' + i)): "x"}
		for k, v := range was.Labels {
			next.Labels[k] = v
		}
		w.Manager, w.Now = "m"+string(rune('a'+i)), at.Add(time.Duration(i)*time.Second)
		if err := f.Update(w, was, next); err != nil {
			t.Fatal(err)
		}
	}
	if len(next.ManagedFields) != maxUpdaters || !strings.Contains(owned(next), ancientChanges) {
		t.Errorf("%d entries:\n%s", len(next.ManagedFields), owned(next))
	}
}

// What an object without entries held before the first apply is somebody's, but for what such writes cannot set.
func TestBeforeTheFirstApply(t *testing.T) {
	f, row := fields(t)
	replicas := int32(1)
	live := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: &replicas}, Status: appsv1.DeploymentStatus{Replicas: 7}}
	live.Name, live.UID = "d", "u"
	obj, _, err := f.Apply(Write{Row: row, Reset: []string{"status"}, Manager: "one", Now: time.Unix(1700000000, 0)}, live,
		config(t, "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {paused: true}\n"), false)
	if err != nil {
		t.Fatal(err)
	}
	if got := owned(obj.(*appsv1.Deployment)); !strings.Contains(got, `before-first-apply Update  {"f:spec":{"f:replicas":{}`) || strings.Contains(got, "status") {
		t.Errorf("owned:\n%s", got)
	}
}

// Null and empty are two values of a list that JSON shows: who sets one for the other has changed it.
func TestNullAndEmptyDiffer(t *testing.T) {
	f, _ := fields(t)
	row := f.rows(rbacv1.SchemeGroupVersion.WithKind("Role"))
	live := &rbacv1.Role{}
	live.Name, live.UID = "r", "u"
	role := "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: r}\n"
	w := Write{Row: row, Manager: "one", Now: time.Unix(1700000000, 0)}
	obj, _, err := f.Apply(w, nil, config(t, role+"rules: []\n"), false)
	if err != nil {
		t.Fatal(err)
	}
	live.ManagedFields = obj.GetManagedFields()
	w.Manager = "two"
	if _, _, err = f.Apply(w, live, config(t, role+"rules: []\n"), false); !errors.As(err, new(*ConflictError)) {
		t.Errorf("null is made empty without a conflict: %v", err)
	}
	next := live.DeepCopy()
	next.Rules = []rbacv1.PolicyRule{}
	if err := f.Update(w, live, next); err != nil || len(next.ManagedFields) != 1 || next.ManagedFields[0].Manager != "two" {
		t.Errorf("%v: %v", err, next.ManagedFields)
	}
}

// An unknown directive is neither a bad patch nor one that does not fit: upstream answers 500.
func TestUnknownDirective(t *testing.T) {
	_, _, err := Strategic(&corev1.Pod{}, &corev1.Pod{}, []byte(`{"$patch":"foo"}`))
	if err == nil || errors.As(err, new(*UnprocessableError)) || errors.As(err, new(*BadError)) || !strings.Contains(err.Error(), "unknown patch type: foo") {
		t.Errorf("%T %v", err, err)
	}
}

// Patches that let the libraries panic do not fit the object: they are the client's fault.
func TestPatchThatALibraryFailsOn(t *testing.T) {
	var refused *UnprocessableError
	if out, err := JSON([]byte(`{}`), []byte(`[{"op":"test","path":""}]`)); !errors.As(err, &refused) {
		t.Errorf("a test of nothing: %q, %v", out, err)
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{{}}}}
	if _, _, err := Strategic(pod, &corev1.Pod{}, []byte(`{"spec":{"volumes":[{"name":{}}]}}`)); !errors.As(err, &refused) {
		t.Errorf("a merge key that is an object: %v", err)
	}
}

func FuzzApply(f *testing.F) {
	f.Add(base)
	reg, err := resources.NewRegistry(resources.Table())
	if err != nil {
		f.Fatal(err)
	}
	ff, row := NewFields(reg.Kind), reg.Lookup("apps", "v1", "deployments")
	f.Fuzz(func(t *testing.T, text string) {
		u := &unstructured.Unstructured{Object: map[string]any{}}
		raw, err := yaml.YAMLToJSON([]byte(text))
		if err != nil || u.UnmarshalJSON(raw) != nil {
			return
		}
		obj, _, err := ff.Apply(Write{Row: row, Manager: "f", Now: time.Unix(1, 0)}, nil, u, false)
		if err != nil {
			return
		}
		if _, _, err := ff.Apply(Write{Row: row, Manager: "f", Now: time.Unix(2, 0)}, obj, u, false); err != nil {
			t.Errorf("applying the same again: %v\n%s", err, text)
		}
	})
}
