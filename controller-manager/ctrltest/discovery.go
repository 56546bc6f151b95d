package ctrltest

import (
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// discover answers /api, /apis, /api/v1 and /apis/GROUP/VERSION with the kinds that
// were ever stored; nil for any other path.
func (a *API) discover(path string) any {
	parts := strings.Split(path, "/")
	a.mu.Lock()
	defer a.mu.Unlock()
	prefixes := slices.Sorted(maps.Keys(a.objects))
	switch {
	case path == "api":
		return &metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}}
	case path == "apis":
		out := &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
		for _, p := range prefixes {
			s := strings.Split(p, "/")
			if s[0] != "apis" || slices.ContainsFunc(out.Groups, func(g metav1.APIGroup) bool { return g.Name == s[1] }) {
				continue
			}
			v := metav1.GroupVersionForDiscovery{GroupVersion: s[1] + "/" + s[2], Version: s[2]}
			out.Groups = append(out.Groups, metav1.APIGroup{Name: s[1], Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v})
		}
		return out
	case parts[0] == "api" && len(parts) == 2, parts[0] == "apis" && len(parts) == 3:
		out := &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: strings.Join(parts[1:], "/")}
		for _, p := range prefixes {
			if name, ok := strings.CutPrefix(p, path+"/"); ok {
				kind, _ := kindOf(request{prefix: p})["kind"].(string)
				out.APIResources = append(out.APIResources, metav1.APIResource{
					Name: name, Kind: kind, Namespaced: a.spaced[p],
					Verbs: metav1.Verbs{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"},
				})
			}
		}
		return out
	}
	return nil
}
