package controllers

import (
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/keelson/keelson/controller-manager/runtime"
)

func TestTable(t *testing.T) {
	if err := runtime.Check(Table); err != nil {
		t.Fatal(err)
	}
	// Every row can be built, reads what it declares and nothing else.
	rc := &rest.Config{Host: "http://nowhere"}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range Table {
		if _, err := runtime.New([]runtime.Row{r}, runtime.Options{Client: client, REST: rc, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Settings: runtime.DefaultSettings()}); err != nil {
			t.Errorf("%s: %v", r.Name, err)
		}
		for _, w := range r.Writes {
			if !strings.Contains(runtime.Graph([]runtime.Row{r}), strings.Split(w[strings.Index(w, " ")+1:], "/")[0]) {
				t.Errorf("%s: the graph does not show that it writes %s", r.Name, w)
			}
		}
		for _, rule := range r.Rules() {
			if len(rule.Verbs) == 0 || len(rule.Resources) == 0 && len(rule.NonResourceURLs) == 0 {
				t.Errorf("%s: empty rule %+v", r.Name, rule)
			}
		}
	}
}

func TestSelect(t *testing.T) {
	table := []runtime.Row{{Name: "a-controller"}, {Name: "b-controller"}, {Name: "c", OffByDefault: true}}
	for list, want := range map[string]string{"*": "a-controller b-controller", "*,-b": "a-controller", "*,c": "a-controller b-controller c", "b,-a-controller": "b-controller", "-a": ""} {
		rows, err := runtime.Select(table, strings.Split(list, ","))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, r := range rows {
			names = append(names, r.Name)
		}
		if !slices.Equal(names, strings.Fields(want)) {
			t.Errorf("--controllers=%s: want %s, got %s", list, want, names)
		}
	}
	if _, err := runtime.Select(table, []string{"nonsense"}); err == nil {
		t.Error("an unknown name must be an error")
	}
}
