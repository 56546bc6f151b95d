package config

import (
	"fmt"

	"sigs.k8s.io/yaml"
)

// Kubeconfig returns a kubeconfig for one user of the cluster, with everything in it:
// it can be copied to another machine as it is.
func Kubeconfig(server, user string, ca, cert, key []byte) ([]byte, error) {
	type named map[string]any
	b, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1",
		"kind":       "Config",
		"clusters": []named{{"name": "keelson", "cluster": named{
			"server": server, "certificate-authority-data": ca}}},
		"users": []named{{"name": user, "user": named{
			"client-certificate-data": cert, "client-key-data": key}}},
		"contexts":        []named{{"name": user + "@keelson", "context": named{"cluster": "keelson", "user": user}}},
		"current-context": user + "@keelson",
	})
	if err != nil {
		return nil, fmt.Errorf("kubeconfig of %s: %w", user, err)
	}
	return b, nil
}
